"""JSON schemas that an engine holds its replies to: checks that one is safe to compile to a grammar."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from serve.errors import BadRequest

MAX_BYTES = 16 * 1024
MAX_DEPTH = 32
MAX_CHAIN = 64
"""Longest chain of references and alternatives for one value."""
MAX_REPEAT = 1000
MAX_OPTIONAL = 100
# A grammar compiler unrolls repetitions and runs patterns: both have crashed engines
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


def is_nested_deeper(value: Any, levels: int) -> bool:
    """Return whether lists and objects of a JSON value lie in each other deeper than so many levels."""
    inside = [value]
    for _ in range(levels + 1):
        inside = [
            child
            for node in inside
            for child in (node.values() if isinstance(node, dict) else node if isinstance(node, list) else ())
        ]
        if not inside:
            return False
    return True


def schema_text(schema: dict[str, Any], param: str, most: int = MAX_BYTES) -> str:
    """Return a schema as JSON text for the engine, of at most so many characters.

    Raises BadRequest naming `param` for one that is not safe.
    """
    nodes = _objects(schema, param, most)
    if sum(map(optional_properties, nodes)) > MAX_OPTIONAL:
        raise BadRequest(f"More than {MAX_OPTIONAL} properties are not `required`.", param=param)
    for node in nodes:
        _check(node, param)
    _check_circles(nodes, schema, param)
    try:
        text = json.dumps(schema, separators=(",", ":"), allow_nan=False)
    except ValueError:
        raise BadRequest("The schema has a number that JSON does not have.", param=param) from None
    if len(text) > most:
        raise _too_large(param, most)
    return text


def _objects(schema: dict[str, Any], param: str, most: int) -> list[dict[str, Any]]:
    """Return every object of the schema, itself first. Raises BadRequest where it is too deep or too large.

    Works without recursion, and stops at the size limit.
    """
    objects: list[dict[str, Any]] = []
    left: list[tuple[Any, int]] = [(schema, 1)]
    size = 0  # a lower bound on the characters of JSON
    while left:
        node, depth = left.pop()
        size += len(node) + 1 if isinstance(node, str | dict | list) else 1
        if isinstance(node, dict):
            objects.append(node)
            size += sum(map(len, node)) if len(node) <= most else 0
        if size > most:
            raise _too_large(param, most)
        if isinstance(node, dict | list):
            if depth > MAX_DEPTH + (0 if isinstance(node, dict) else 2):
                raise BadRequest(f"The schema is nested deeper than {MAX_DEPTH} levels.", param=param)
            left += [(child, depth + 1) for child in (node.values() if isinstance(node, dict) else node)]
    return objects


def _too_large(param: str, most: int) -> BadRequest:
    return BadRequest(f"The schema is larger than {most:,} characters.", param=param)


def _check(node: dict[str, Any], param: str) -> None:
    for word, kind in REFUSED.items():
        if isinstance(node.get(word), kind):
            raise BadRequest(f"{word} is not supported in a schema.", param=param, code="unsupported_parameter")
    for word in COUNTS:
        count = node.get(word)
        if isinstance(count, int | float) and not 0 <= count <= MAX_REPEAT:
            raise BadRequest(f"{word} must lie between 0 and {MAX_REPEAT}.", param=param)
    reference = node.get("$ref")
    if isinstance(reference, str) and not reference.startswith("#"):
        raise BadRequest("$ref can only point into the schema itself.", param=param)


def _check_circles(nodes: Sequence[dict[str, Any]], schema: dict[str, Any], param: str) -> None:
    """Raise BadRequest for references in a circle, or in a chain longer than MAX_CHAIN.

    A reference back to itself for the same value is no rule, and fails in the middle of a reply. A reference back from
    inside an object or list describes a tree, and is allowed. The search is depth first, once from each object.
    """
    heights: dict[int, int] = {}  # of finished objects: length of the chain of references from there
    for start in nodes:
        if id(start) in heights:
            continue
        path = [(start, _same_value(start, schema))]
        above = {id(start): 0}
        while path:
            node, others = path[-1]
            other = next((other for other in others if isinstance(other, dict)), None)
            if other is None:
                path.pop()
                height = heights[id(node)] = above.pop(id(node))
                if height > MAX_CHAIN:
                    raise BadRequest(f"More than {MAX_CHAIN} references follow each other.", param=param)
                if path:
                    parent = id(path[-1][0])
                    above[parent] = max(above[parent], height + 1)
            elif id(other) in above:
                raise BadRequest("$ref leads round in a circle.", param=param, code="invalid_schema")
            elif id(other) in heights:
                above[id(node)] = max(above[id(node)], heights[id(other)] + 1)
            else:
                above[id(other)] = 0
                path.append((other, _same_value(other, schema)))


def _same_value(node: dict[str, Any], schema: dict[str, Any]) -> Iterator[Any]:
    """Yield the schemas that apply to the same value as `node`: its alternatives and its reference."""
    for word in ("anyOf", "oneOf", "allOf"):
        if isinstance(node.get(word), list):
            yield from node[word]
    reference = node.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        target: Any = schema
        for part in reference.split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            if isinstance(target, list) and name.isdecimal() and len(name) < 6:
                target = target[int(name)] if int(name) < len(target) else None
            else:
                target = target.get(name) if isinstance(target, dict) else None
        yield target


def optional_properties(node: dict[str, Any]) -> int:
    """Return the number of properties in one object of a schema that may be left out."""
    properties, required = node.get("properties"), node.get("required")
    names = set(properties) if isinstance(properties, dict) else set()
    needed = [name for name in required if isinstance(name, str)] if isinstance(required, list) else []
    return len(names.difference(needed))
