"""Extraction: which schemas are taken, which replies satisfy one, and the requests that carry one."""

import dataclasses
import json
import pickle
from typing import Any

import numpy as np
import pytest
from served import LLAVA, URL, calling, message, picture

from serve.api.app import create_app
from serve.client.asking import text_fields
from serve.client.evaluation.annotations import Labelled
from serve.client.evaluation.asker import form
from serve.client.http_client import Failure, Misuse
from serve.engines.base import Generation
from serve.engines.fake import FakeEngine
from serve.errors import BadRequest, ParseError
from serve.media.image import Image
from serve.models import MODELS
from serve.models.instructed import instructed_skills
from serve.router import Router
from serve.tasks.extract import EXTRACT, ExtractRequest, _read
from serve.tasks.object_schema import MAX_DEPTH, object_schema
from serve.worker import Worker

IMAGE = Image(np.zeros((30, 40, 3), np.uint8))
INSTRUCTED = dataclasses.replace(MODELS[LLAVA], skills=instructed_skills(MODELS[LLAVA].converse))
RECEIPT = {
    "type": "object",
    "properties": {
        "shop": {"type": "string"},
        "day": {"type": "string", "format": "date"},
        "lines": {"type": "array", "items": {"$ref": "#/$defs/line"}},
        "total": {"anyOf": [{"type": "number", "minimum": 0}, {"type": "null"}]},
    },
    "required": ["shop", "total"],
    "$defs": {
        "line": {
            "type": "object",
            "properties": {"item": {"type": "string"}, "kind": {"enum": ["food", "other"]}},
            "required": ["item"],
            "additionalProperties": False,
        }
    },
}
WHOLE = {"shop": "Bäcker", "day": "2026-11-28", "lines": [{"item": "roll", "kind": "food"}], "total": 1.5}


def of(part: Any, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": part}, **more}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = of(schema, required=["a"])
    return schema


def request(schema: Any = RECEIPT) -> ExtractRequest:
    return ExtractRequest(image=IMAGE, schema=schema)


@pytest.mark.parametrize("schema", [RECEIPT, nested(MAX_DEPTH), of({"type": ["string", "null"]}), of({"const": None})])
def test_schema_is_taken_as_an_object_or_as_text(schema: dict[str, Any]) -> None:
    text = object_schema(schema)
    assert json.loads(text) == schema and object_schema(text) == text == request(json.dumps(schema)).schema_


BLOWN = {str(at): of({"$ref": f"#/$defs/{at + 1}"}, required=["a"]) for at in range(8)} | {"8": {"type": "string"}}
MANY = {str(at): {"anyOf": [{"$ref": f"#/$defs/{at + 1}"}] * 2} for at in range(8)} | {"8": {"type": "string"}}
TREE = {"type": "array", "items": {"anyOf": [{"type": "array", "items": {"$ref": "#/$defs/a/items"}}] * 8}}
CHAIN = {str(at): {"$ref": f"#/$defs/{at + 1}"} for at in range(17)} | {"17": {"type": "string"}}
REFUSED = {
    "not JSON": ("{", "not JSON"),
    "no object": ("[]", "must be a JSON object"),
    "long text": (" " * 20_001, "larger than 20,000"),
    "large": (of({"enum": ["a" * 20_000]}), "larger than 20,000"),
    "no type": ({"properties": {}}, 'must have "type": "object"'),
    "array": ({"type": "array"}, 'must have "type": "object"'),
    "deep": (nested(MAX_DEPTH + 1), "nested deeper than 8"),
    "deep through references": (
        {"type": "object", "properties": {"a": {"$ref": "#/$defs/0"}}, "$defs": BLOWN},
        "deeper",
    ),
    "many alternatives": (of({"$ref": "#/$defs/0"}, **{"$defs": MANY}), "more than 8 alternatives"),
    "many objects": ({"type": "object", "$defs": {str(at): {} for at in range(1001)}}, "more than 1,000"),
    "many choices": (of({"enum": list(range(501))}), "more than 500 choices"),
    "many properties": (
        of(
            {
                "type": "object",
                "properties": {f"p{at}": {} for at in range(200)},
                "required": [f"p{at}" for at in range(200)],
            }
        ),
        "more than 200 properties",
    ),
    "recursion": (of({"type": "array", "items": {"$ref": "#"}}), "circle"),
    "foreign reference": (of({"$ref": "https://example.org/a"}), "only point into the schema"),
    "unknown reference": (of({"$ref": "#/$defs/x"}), "no part of"),
    "many references": (of({"$ref": "#/$defs/1"}, **{"$defs": CHAIN}), "more than 16 references"),
    "recursion behind a path": (
        of({"$ref": "#/$defs/a"}, **{"$defs": {"a": TREE, "a/items": {"type": "integer"}}}),
        "no part of",
    ),
    "recursion behind an escape": (
        of({"$ref": "#/$defs/xy"}, **{"$defs": {"xy": {"$ref": "#/$defs/x%79"}, "x%79": {"type": "integer"}}}),
        "no part of",
    ),
    "reference into properties": (of({"$ref": "#/properties/a"}), "circle"),
    "pattern": (of({"type": "string", "pattern": "a+"}), "pattern is not supported"),
    "not": (of({"not": {"type": "string"}}), "not is not supported in a schema at properties/a"),
    "oneOf": (of({"oneOf": [{"type": "string"}]}), "oneOf is not supported"),
    "uniqueItems": (of({"type": "array", "uniqueItems": True}), "uniqueItems is not supported"),
    "multipleOf in additionalProperties": (
        {"type": "object", "additionalProperties": {"type": "number", "multipleOf": 2}},
        "multipleOf is not supported",
    ),
    "wrong format": (of({"type": "string", "format": "hostname"}), "properties/a/format"),
    "format with a length": (of({"type": "string", "format": "date", "maxLength": 3}), "maxLength beside format"),
    "bound without a type": (of({"minimum": 3}), "minimum needs a type"),
    "bound beside anyOf": (of({"anyOf": [{"type": "string"}], "type": "string"}), "anyOf must stand alone"),
    "wrong type": (of({"type": "text"}), "properties/a/type"),
    "wrong required": ({"type": "object", "required": "a"}, "required"),
    "repetition": (of({"type": "string", "maxLength": 9999}), "maxLength must lie between"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_schema_that_cannot_be_held_is_refused_by_name(name: str) -> None:
    schema, why = REFUSED[name]
    with pytest.raises(BadRequest, match=why) as refused:
        request(schema)
    assert refused.value.param == "schema"


@pytest.mark.parametrize("around", ["{}", "```json\n{}\n```", "Here it is: {} Done."])
def test_object_is_read_from_words_around(around: str) -> None:
    result = _read(Generation(around.replace("{}", json.dumps(WHOLE))), request())
    assert result.data == WHOLE and result.model_dump() == {"data": WHOLE}
    assert EXTRACT.as_text(result) == json.dumps(WHOLE, ensure_ascii=False)
    assert pickle.loads(pickle.dumps(result)).schema_text == request().schema_


@pytest.mark.parametrize(
    ("text", "cut", "why"),
    [
        ("a receipt", False, "no JSON object"),
        ('{"shop": "a", "total": 1', True, "cut by max_tokens"),
        ('{"shop": "a", "lines": [{}', True, "cut by max_tokens"),
        ('{"shop": "a" "total": 1}', False, "not JSON"),
        ('{"shop": "a"}', False, "'total' is a required property"),
        ('{"shop": "a", "total": "1"}', False, "total: "),
        ('{"shop": "a", "total": 1, "day": "soon"}', False, "day: "),
        ('{"shop": "a", "total": 1, "lines": [{"item": "x", "price": 2}]}', False, "lines/0: "),
        ('{"shop": "a", "total": 1e400}', False, "too large"),
        ('{"shop": "a", "total": 1, "more": [' + "1," * 4000 + "1]}", False, "more than 4,000 values"),
        ('{"shop": "a", "total": NaN}', False, "not JSON"),
        ('{"shop": "\\ud800", "total": 1}', False, "not JSON"),
        ('{"shop": "a", "total": 1, "more": ' + "[" * 9 + "]" * 9 + "}", False, "nested deeper"),
        ('{"shop": "a", "total": 1, "more": ' + "[" * 999 + "]" * 999 + "}", False, "not JSON"),
    ],
)
def test_reply_without_such_an_object_is_an_error(text: str, cut: bool, why: str) -> None:
    with pytest.raises(ParseError, match=why):
        _read(Generation(text, cut=cut), request())


async def test_request_that_no_served_model_can_do_is_refused() -> None:
    worker = Worker(MODELS[LLAVA], FakeEngine("{}"))
    worker.mark("ready", "ready")
    async with calling(create_app(Router([worker]))) as client:
        answer = await client.post("/v1/tasks/extract", json={"image": URL, "schema": RECEIPT})
    assert answer.status_code == 404 and "can do extract" in answer.json()["error"]["message"]


async def test_schema_reaches_models_by_json_form_and_chat_alike() -> None:
    worker = Worker(INSTRUCTED, FakeEngine(json.dumps(WHOLE)))
    worker.mark("ready", "ready")
    text = json.dumps(RECEIPT)
    async with calling(create_app(Router([worker]))) as client:
        by_object = await client.post("/v1/tasks/extract", json={"image": URL, "schema": RECEIPT})
        by_text = await client.post("/v1/tasks/extract", json={"image": URL, "schema": text})
        sent = form(picture(), {"schema": text})
        by_form = await client.post("/v1/tasks/extract", files=sent["files"], data=sent["data"])
        by_chat = await client.post("/v1/chat/completions", json={"model": "extract:*", "messages": [message(text)]})
        wrong = await client.post("/v1/tasks/extract", json={"image": URL, "schema": of({"not": {}})})
        missing = await client.post("/v1/tasks/extract", json={"image": URL})
        listed = (await client.get("/v1/models/extract")).json()["diptych"]
    for answer in (by_object, by_text, by_form):
        merged = answer.json()["merged"]
        assert merged["result"]["data"] == WHOLE and merged["method"] == "field_vote"
        assert merged["result"]["field_agreement"]["/lines/0/item"] == 1
    assert [json.loads(choice["message"]["content"]) for choice in by_chat.json()["choices"]] == [WHOLE, WHOLE]
    assert wrong.status_code == 400 and wrong.json()["error"]["param"] == "schema"
    assert missing.status_code == 400 and missing.json()["error"]["param"] == "schema"
    assert listed["text_field"] == "schema" and json.loads(listed["example"]["schema"])["type"] == "object"


def test_prompt_writes_the_schema_out_and_holds_the_engine_to_the_same() -> None:
    extract = request()
    (prompt,) = INSTRUCTED.skills["extract"].ask(extract)
    assert prompt.sampling.json_schema == extract.schema_ == EXTRACT.texts(extract)[0] and prompt.sampling.logprobs
    assert extract.schema_ in prompt.text


def test_command_line_takes_the_schema_as_json_or_from_a_file(tmp_path: Any) -> None:
    def usage(field: str, words: str) -> str:
        return f"--{field} {words}"

    file = tmp_path / "receipt.json"
    file.write_text(json.dumps(RECEIPT))
    assert text_fields("extract", None, None, usage, '{"type": "object"}') == {"schema": '{"type": "object"}'}
    assert text_fields("extract", None, None, usage, str(file)) == {"schema": json.dumps(RECEIPT)}
    with pytest.raises(Misuse, match="--schema '{"):
        text_fields("extract", None, None, usage)
    with pytest.raises(Misuse, match="for extract, not for vqa"):
        text_fields("vqa", "what?", None, usage, "{}")


def test_labels_line_gives_the_schema_and_an_object_that_satisfies_the_schema(tmp_path: Any) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    lines = tmp_path / "labels.jsonl"
    whole = {"image": "a.png", "task": "extract", "schema": RECEIPT, "data": WHOLE}
    lines.write_text(json.dumps(whole))
    (item,) = Labelled(tmp_path, None).items
    assert json.loads(item.fields["schema"]) == RECEIPT and item.truth == {"data": WHOLE}
    for wrong, why in (({"data": {}}, "data: "), ({"schema": {}}, "schema: "), ({"schema": None}, "needs it")):
        lines.write_text(json.dumps(whole | wrong))
        with pytest.raises(Failure, match=why):
            Labelled(tmp_path, None)
