"""Kubernetes' own kinds against its schemas, others against their CRDs: no unknown field, no wrong type."""

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
    """The kinds that Kubernetes brings; what it does not know is left to `custom`."""
    for document in documents:
        try:
            kubernetes_validate.validate(document, VERSION, strict=True)
        except kubernetes_validate.SchemaNotFoundError:
            continue
        except kubernetes_validate.ValidationError as error:
            yield f"{named(document)}: {'.'.join(map(str, error.path))}: {error.message}"


def known(document: Document) -> bool:
    """Whether Kubernetes itself has this kind."""
    try:
        kubernetes_validate.validate(document, VERSION, strict=True)
    except kubernetes_validate.SchemaNotFoundError:
        return False
    except kubernetes_validate.ValidationError:
        pass
    return True


def definitions(folder: Path) -> Definitions:
    """The CRDs of a folder, by apiVersion and kind."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found = {}
    for file in sorted(folder.glob("*.yaml")):
        for crd in yaml.load_all(file.read_text(), Loader=loader):
            if crd and crd.get("kind") == "CustomResourceDefinition":
                spec = crd["spec"]
                for version in spec["versions"]:
                    schema = closed(version["schema"]["openAPIV3Schema"])
                    schema["properties"] |= {"apiVersion": {}, "kind": {}, "metadata": {"type": "object"}}
                    kind = f"{spec['group']}/{version['name']}", spec["names"]["kind"]
                    found[kind] = Draft202012Validator(schema)
    return found


def custom(documents: list[Document], crds: Definitions) -> Iterator[str]:
    """All other kinds. One without a CRD is a fault: nobody has looked at it."""
    for document in documents:
        if known(document):
            continue
        validator = crds.get((document["apiVersion"], document["kind"]))
        if validator is None:
            yield f"{named(document)}: there is no CRD of {document['apiVersion']}"
            continue
        for error in validator.iter_errors(pruned(document)):
            yield f"{named(document)}: {'.'.join(map(str, error.absolute_path))}: {error.message[:200]}"


def named(document: Document) -> str:
    return f"{document['kind']} {document['metadata']['name']}"


def closed(schema: Any) -> Any:
    """A CRD's structural schema as JSON Schema, with what the API server does beside it: unknown fields are refused
    (where it would drop them), defaults fill what is required, an int-or-string is either."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "properties":
            made[key] = {name: closed(one) for name, one in value.items()}
        elif key in ("items", "additionalProperties", "not", "allOf", "anyOf", "oneOf"):
            made[key] = closed(value)
        else:
            made[key] = value
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("format", None)
        made["type"] = ["integer", "string"]
    if schema.get("nullable") and isinstance(made.get("type"), str):
        made["type"] = [made["type"], "null"]
    if "properties" in schema:
        fields = schema["properties"]
        made["required"] = [name for name in schema.get("required", []) if "default" not in fields.get(name, {})]
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            made.setdefault("additionalProperties", False)
    return made


def pruned(value: Any) -> Any:
    """Without nulls, which the API server takes for nothing."""
    if isinstance(value, dict):
        return {key: pruned(one) for key, one in value.items() if one is not None}
    if isinstance(value, list):
        return [pruned(one) for one in value]
    return value
