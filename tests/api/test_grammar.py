"""JSON schemas that are deep, circular or huge: checked in a bounded number of steps, without recursion."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from serve.api.chat_completions.request import SCHEMA_PARAM, JsonSchema, SchemaFormat, json_schema
from serve.engines import json_schema as checks
from serve.engines.json_schema import MAX_CHAIN, MAX_DEPTH
from serve.errors import BadRequest


def read(schema: dict[str, Any]) -> str | None:
    return json_schema(SchemaFormat(type="json_schema", json_schema=JsonSchema(name="x", schema=schema)))


def nested(depth: int, inner: Any, opening: str = '{"items":', closing: str = "}") -> Any:
    return json.loads(opening * depth + json.dumps(inner) + closing * depth)


def chain(length: int, last: dict[str, Any], word: str = "anyOf") -> dict[str, Any]:
    """Return a schema with a chain of references, each inside `word`."""
    links = {str(at): {word: [{"$ref": f"#/$defs/{at + 1}"}]} for at in range(length)}
    return {"$ref": "#/$defs/0", "$defs": {**links, str(length): last}}


CIRCLES = {
    "itself": {"$ref": "#"},
    "long circle": chain(280, {"$ref": "#/$defs/0"}),
    "met from the middle": {"properties": {"a": {"$ref": "#/$defs/9"}}, **chain(20, {"$ref": "#/$defs/3"})},
    "through a list": {"anyOf": [{"$ref": "#/anyOf/1"}, {"allOf": [{"$ref": "#/anyOf/0"}]}]},
    "through escaped names": {"$ref": "#/$defs/a~1b~0c", "$defs": {"a/b~c": {"oneOf": [{"$ref": "#"}]}}},
    "beside a way out": {"anyOf": [{"type": "null"}, {"$ref": "#"}]},
    "below an item": {"items": {"$ref": "#/items/allOf/0/anyOf/0", "allOf": [{"anyOf": [{"$ref": "#/items"}]}]}},
}


@pytest.mark.parametrize("name", CIRCLES)
def test_circular_schema_is_refused(name: str) -> None:
    with pytest.raises(BadRequest) as refused:
        read(CIRCLES[name])
    assert (refused.value.param, refused.value.code) == (SCHEMA_PARAM, "invalid_schema")


@pytest.mark.parametrize("length", [MAX_CHAIN + 1, 150, 290])
@pytest.mark.parametrize("word", ["anyOf", "allOf"])
def test_long_chain_of_references_is_refused(length: int, word: str) -> None:
    for last in ({"type": "null"}, {"items": {"$ref": "#"}}):
        with pytest.raises(BadRequest, match="follow each other"):
            read(chain(length, last, word))


@pytest.mark.parametrize(
    "schema",
    [
        chain(MAX_CHAIN // 2 - 1, {"type": "null"}),
        {"properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, "required": ["next"]},
        {"items": {"$ref": "#"}},
        {"$defs": {str(at): {"anyOf": [{"$ref": f"#/$defs/{at + 1}"}] * 4} for at in range(30)}},  # 4 ** 30 paths
        {"$ref": "#/$defs/nothing/there", "anyOf": [True, {"$ref": "#/anyOf/99"}, {"$ref": "#/anyOf/x"}]},
        nested(MAX_DEPTH - 1, {"type": "null"}),
        {"enum": ["a" * 1000, 1, None, ["x"]]},
    ],
    ids=range(7),
)
def test_schema_without_circle_is_accepted(schema: dict[str, Any]) -> None:
    assert json.loads(read(schema) or "") == schema


@pytest.mark.parametrize(
    "schema",
    [
        nested(MAX_DEPTH, {"type": "null"}),
        nested(180, {}),
        {"enum": nested(190, 1, "[", "]")},
        nested(90, {}, '{"anyOf":[', "]}"),
        {"required": nested(150, "a", "[", "]")},
    ],
    ids=range(5),
)
def test_deep_schema_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match="nested deeper"):
        read(schema)


def test_depth_costs_no_recursion() -> None:
    schema: dict[str, Any] = {}
    for _ in range(100_000):  # deeper than any JSON parser goes
        schema = {"items": schema}
    with pytest.raises(BadRequest, match="nested deeper"):
        json_schema(SchemaFormat.model_construct(json_schema=JsonSchema.model_construct(schema_=schema)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda: {"description": "x" * 20_000_000},
        lambda: {"enum": list(range(1_000_000))},
        lambda: {"x" * 20_000: True},
        lambda: {"properties": {str(at): {"type": "null"} for at in range(200_000)}},
        lambda: {"enum": ["é" * 4000]},  # six characters each once it is JSON
    ],
    ids=range(5),
)
def test_large_schema_is_refused_before_encoding(
    make: Callable[[], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []

    class CountingJson:
        @staticmethod
        def dumps(value: Any, **options: Any) -> str:
            written.append(len(text := json.dumps(value, **options)))
            return text

    monkeypatch.setattr(checks, "json", CountingJson)
    with pytest.raises(BadRequest, match="larger"):
        read(make())
    assert sum(written) <= 8 * checks.MAX_BYTES


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_json_lacks_are_refused(number: float) -> None:
    with pytest.raises(BadRequest) as refused:
        read({"properties": {"a": {"const": [number]}}})
    assert refused.value.param == SCHEMA_PARAM
