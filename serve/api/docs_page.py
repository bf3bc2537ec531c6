"""Writes the OpenAPI document as HTML for the page /docs: every route, its fields, its replies."""

import html
import json
from collections.abc import Iterable, Mapping
from typing import Any

Json = Mapping[str, Any]
Row = tuple[str, Json, bool, str]
"""A field: its name, its schema, whether it is required, and what it is about."""


def routes_as_html(document: Json) -> str:
    """Return a section for each tag. Every text of the document is escaped."""
    schemas, groups = document["components"]["schemas"], dict[str, list[str]]()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            tag = operation.get("tags", ["other"])[0]
            groups.setdefault(tag, []).append(_route(method, path, operation, schemas))
    return "".join(
        f"<section><h2>{_text(tag.capitalize())}</h2>{''.join(some)}</section>" for tag, some in groups.items()
    )


def _route(method: str, path: str, operation: Json, schemas: Json) -> str:
    parts = [f"<summary><code>{method.upper()} {_text(path)}</code> {_quiet(operation.get('summary', ''))}</summary>"]
    if parameters := operation.get("parameters"):
        rows = [
            (field["name"], field["schema"], field.get("required", False), field.get("description", ""))
            for field in parameters
        ]
        parts += ["<h3>Parameters</h3>", _fields(rows, schemas)]
    if body := operation.get("requestBody", {}).get("content"):
        schema = schemas.get(_named(body.get("application/json", {}).get("schema", {})), {})
        needed = schema.get("required", ())
        fields = schema.get("properties", {}).items()
        rows = [(name, field, name in needed, field.get("description", "")) for name, field in fields]
        parts += [f"<h3>Body: {_text(' or '.join(body))}</h3>", _fields(rows, schemas)]
    replies = []
    for status, reply in operation["responses"].items():
        kind = _named(reply.get("content", {}).get("application/json", {}).get("schema", {}))
        replies.append(f"<li><strong>{status}</strong> {_text(reply['description'])} {_quiet(kind)}</li>")
    return f'<details class="panel route">{"".join(parts)}<h3>Replies</h3><ul>{"".join(replies)}</ul></details>'


def _fields(rows: Iterable[Row], schemas: Json) -> str:
    items = []
    for name, schema, required, about in rows:
        given = schema.get("default")
        facts = [_kind(schema, schemas), "required" * required, "" if given is None else f"default {json.dumps(given)}"]
        paragraph = f"<p>{_text(about)}</p>" if about else ""
        items.append(f"<dt><code>{_text(name)}</code></dt><dd>{_quiet(', '.join(filter(None, facts)))}{paragraph}</dd>")
    return f"<dl>{''.join(items)}</dl>"


def _kind(schema: Json, schemas: Json) -> str:
    """Return what a schema allows, in words."""
    if name := _named(schema):
        return " | ".join(map(str, schemas.get(name, {}).get("enum", [name])))
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            return " or ".join(kind for field in schema[several] if (kind := _kind(field, schemas)) != "null")
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "const" in schema:
        return json.dumps(schema["const"])
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}), schemas)}"
    return str(schema.get("type", "anything"))


def _named(schema: Json) -> str:
    return str(schema.get("$ref", "")).rpartition("/")[2]


def _quiet(text: str) -> str:
    return f'<span class="quiet">{_text(text)}</span>' if text else ""


def _text(text: str) -> str:
    return html.escape(text)
