"""A request's response_format as the JSON schema that an engine holds its reply to, checked before it sees it."""

import json
from collections.abc import Iterator
from typing import Any

from serve.chat_completions.request import JsonFormat, SchemaFormat, TextFormat
from serve.errors import BadRequest

MAX_BYTES = 16 * 1024
MAX_DEPTH = 32
MAX_REPEAT = 1000
MAX_OPTIONAL = 100
# A grammar compiler unrolls repetitions and runs patterns: both have brought engines down for everybody
# (CVE-2026-55574 and its siblings), so patterns are refused and counts are bounded.
# Properties that may be left out cost the square of their number (xgrammar: 0.2 s of CPU for 100, 7 s for 500), and far
# more with a count of them (100 with minProperties 50: 2.4 s; 200: over a minute).
REFUSED = {
    "pattern": str,  # a property that is called "pattern" holds a dict
    "patternProperties": dict,
    "minProperties": int | float,
    "maxProperties": int | float,
}
COUNTS = ("minLength", "maxLength", "minItems", "maxItems")
PARAM = "response_format.json_schema.schema"


def json_schema(wanted: TextFormat | JsonFormat | SchemaFormat | None) -> str | None:
    """The schema as JSON text; None for plain text. Raises BadRequest for what an engine should not be given."""
    if isinstance(wanted, JsonFormat):
        return '{"type":"object"}'
    if not isinstance(wanted, SchemaFormat):
        return None
    schema = wanted.json_schema.schema_
    text = json.dumps(schema, separators=(",", ":"))
    if len(text) > MAX_BYTES:
        raise BadRequest(f"The schema is larger than {MAX_BYTES // 1024} KB.", param=PARAM)
    optional = 0
    for node, depth in _nodes(schema, 1):
        optional += _optional(node)
        if optional > MAX_OPTIONAL:
            raise BadRequest(f"More than {MAX_OPTIONAL} properties are not `required`.", param=PARAM)
        if depth > MAX_DEPTH:
            raise BadRequest(f"The schema is nested deeper than {MAX_DEPTH} levels.", param=PARAM)
        _check(node)
    _check_circles(schema)
    return text


def _check(node: dict[str, Any]) -> None:
    for word, kind in REFUSED.items():
        if isinstance(node.get(word), kind):
            raise BadRequest(f"{word} is not supported in a schema.", param=PARAM, code="unsupported_parameter")
    for word in COUNTS:
        count = node.get(word)
        if isinstance(count, int | float) and not 0 <= count <= MAX_REPEAT:
            raise BadRequest(f"{word} must lie between 0 and {MAX_REPEAT}.", param=PARAM)
    reference = node.get("$ref")
    if isinstance(reference, str) and not reference.startswith("#"):
        raise BadRequest("$ref can only point into the schema itself.", param=PARAM)


def _check_circles(schema: dict[str, Any]) -> None:
    """A reference that comes back to itself with nothing said between is no rule, and fails in the middle of a reply.
    One that comes back inside an object or a list is a tree, and fine."""
    done: set[int] = set()

    def walk(node: Any, above: tuple[int, ...]) -> None:
        if not isinstance(node, dict) or id(node) in done:
            return
        if id(node) in above:
            raise BadRequest("$ref leads round in a circle.", param=PARAM, code="invalid_schema")
        for other in _same_place(node, schema):
            walk(other, (*above, id(node)))
        done.add(id(node))

    for node, _ in _nodes(schema, 1):
        walk(node, ())


def _same_place(node: dict[str, Any], schema: dict[str, Any]) -> Iterator[Any]:
    """The schemas that must or may hold for the very value that `node` is about."""
    for word in ("anyOf", "oneOf", "allOf"):
        if isinstance(node.get(word), list):
            yield from node[word]
    reference = node.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        found: Any = schema
        for part in reference.split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            found = found.get(name) if isinstance(found, dict) else None
        yield found


def _optional(node: dict[str, Any]) -> int:
    properties, required = node.get("properties"), node.get("required")
    names = set(properties) if isinstance(properties, dict) else set()
    return len(names.difference(map(str, required) if isinstance(required, list) else ()))


def _nodes(node: Any, depth: int) -> Iterator[tuple[dict[str, Any], int]]:
    if isinstance(node, dict):
        yield node, depth
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _nodes(child, depth + 1)
