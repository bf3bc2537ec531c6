"""Validates Kubernetes' own kinds by its schemas, others by their CRDs: no unknown field, no wrong type."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from jsonschema import Draft202012Validator

from k8s.checks.rendered import Document

VERSION = "1.33"
Kind = tuple[str, str]
Definitions = dict[Kind, Draft202012Validator]


def core(documents: list[Document]) -> Iterator[str]:
    """Yield the faults of the kinds that Kubernetes brings; those of others are for `custom`."""
    for document in documents:
        fault = _validate(document)
        if isinstance(fault, kubernetes_validate.ValidationError):
            yield f"{named(document)}: {'.'.join(map(str, fault.path))}: {fault.message}"


def _validate(document: Document) -> Exception | None:
    try:
        kubernetes_validate.validate(document, VERSION, strict=True)
    except (kubernetes_validate.SchemaNotFoundError, kubernetes_validate.ValidationError) as error:
        return error  # type: ignore[no-any-return]
    return None


def definitions(folder: Path) -> Definitions:
    """Read the CRDs of a folder, by apiVersion and kind."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    validators = {}
    for file in sorted(folder.glob("*.yaml")):
        for crd in yaml.load_all(file.read_text(), Loader=loader):
            if crd and crd.get("kind") == "CustomResourceDefinition":
                spec = crd["spec"]
                for version in spec["versions"]:
                    schema = closed(version["schema"]["openAPIV3Schema"])
                    schema["properties"] |= {"apiVersion": {}, "kind": {}, "metadata": {"type": "object"}}
                    kind = f"{spec['group']}/{version['name']}", spec["names"]["kind"]
                    validators[kind] = Draft202012Validator(schema)
    return validators


def custom(documents: list[Document], crds: Definitions) -> Iterator[str]:
    """Yield the faults of all other kinds. A kind without a CRD is a fault, as it cannot be checked."""
    for document in documents:
        if not isinstance(_validate(document), kubernetes_validate.SchemaNotFoundError):
            continue
        validator = crds.get((document["apiVersion"], document["kind"]))
        if validator is None and document["kind"] == "RayJob":  # the largest part of its definition is a cluster's
            cluster = {**document, "kind": "RayCluster", "spec": document["spec"]["rayClusterSpec"]}
            yield from custom([cluster], crds)
            continue
        if validator is None:
            yield f"{named(document)}: there is no CRD of {document['apiVersion']}"
            continue
        for error in validator.iter_errors(pruned(document)):
            yield f"{named(document)}: {'.'.join(map(str, error.absolute_path))}: {error.message[:200]}"


def named(document: Document) -> str:
    return f"{document['kind']} {document['metadata']['name']}"


def closed(schema: Any) -> Any:
    """Convert a CRD's structural schema to JSON Schema with the API server's rules: unknown fields are refused (where
    it would drop them), defaults fill what is required, an int-or-string is either."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    converted = dict(schema)
    for key in {"items", "additionalProperties", "not", "allOf", "anyOf", "oneOf"} & schema.keys():
        converted[key] = closed(schema[key])
    if schema.get("x-kubernetes-int-or-string"):
        converted.pop("format", None)
        converted["type"] = ["integer", "string"]
    if schema.get("nullable") and isinstance(converted.get("type"), str):
        converted["type"] = [converted["type"], "null"]
    if "properties" in schema:
        fields = schema["properties"]
        converted["properties"] = {name: closed(field) for name, field in fields.items()}
        converted["required"] = [name for name in schema.get("required", []) if "default" not in fields.get(name, {})]
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            converted.setdefault("additionalProperties", False)
    return converted


def pruned(value: Any) -> Any:
    """Return the value without nulls, which mean nothing to the API server."""
    if isinstance(value, dict):
        return {key: pruned(item) for key, item in value.items() if item is not None}
    return [pruned(item) for item in value] if isinstance(value, list) else value
