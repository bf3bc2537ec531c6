"""Bodies that are expensive to parse: each is refused with a short message, and the next request is answered."""

import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from served import LLAVA, URL, calling, message, plain

from serve.api.body import MAX_ESCAPES, is_quick
from serve.limits import DEFAULT_LIMITS

MAX_VALUES = DEFAULT_LIMITS.max_values
CHAT, TASK = "/v1/chat/completions", "/v1/tasks/vqa"
VQA: dict[str, Any] = {"image": URL, "question": "what?"}
COMPLETION: dict[str, Any] = {"model": LLAVA, "messages": [message()]}


async def post(path: str, content: bytes, kind: str = "application/json") -> httpx.Response:
    async with calling(plain()) as client:
        reply = await client.post(path, content=content, headers={"content-type": kind})
        assert (await client.post(TASK, json=VQA)).status_code == 200
        return reply


def error_of(reply: httpx.Response) -> dict[str, Any]:
    assert 400 <= reply.status_code < 500 and len(reply.text) < 1500
    error: dict[str, Any] = reply.json()["error"]
    assert len(error["message"]) <= 1000 and len(error["param"] or "") <= 200
    return error


def many(body: dict[str, Any], field: str, values: Any) -> bytes:
    return json.dumps(body | {field: values}).encode()


HOSTILE = {
    "unknown fields": json.dumps(dict.fromkeys(map(str, range(20_000)), 0)).encode(),
    "values": b'{"a":[' + b"{}," * (MAX_VALUES + 1) + b"{}]}",
    "lists in lists": b'{"a":[' + b"[[0]]," * (MAX_VALUES // 3) + b"0]}",
    "objects": b'{"a":[' + b'{"a":{}},' * (MAX_VALUES // 3) + b"0]}",
    "depth": b'{"a":' * 100_000,
    "a long name": json.dumps({"x" * 500_000: 1}).encode(),
    "a number": b'{"seed":' + b"9" * 5000 + b"}",
    "no numbers": b'{"temperature": NaN, "deadline_s": -Infinity}',
    "half a character": b'{"question": "\xed\xa0\x80"}',
    "half an escape": b'{"question": "\\ud800"}',
    "a zero byte": b'{"question": "\\u0000"}',
    "a list": b"[]",
    "nothing": b"",
}


@pytest.mark.parametrize("name", ["values", "lists in lists", "objects"])
async def test_body_of_too_many_values_is_not_parsed(name: str) -> None:
    for path in (CHAT, TASK):
        assert "too many values" in error_of(await post(path, HOSTILE[name]))["message"]


@pytest.mark.parametrize("path", [CHAT, TASK])
@pytest.mark.parametrize("escape", [b"\\n", b"\\/", b"\\u0041"])
async def test_body_of_too_many_escapes_is_not_parsed(path: str, escape: bytes) -> None:
    body = b'{"image": "' + escape * (MAX_ESCAPES + 1) + b'"}'
    assert "too many escaped characters" in error_of(await post(path, body))["message"]


@pytest.mark.parametrize("path", [CHAT, TASK, "/v1/tasks/detect"])
@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE.keys())
async def test_hostile_body_is_refused_in_a_short_message(body: bytes, path: str) -> None:
    error_of(await post(path, body))


@pytest.mark.parametrize(
    ("field", "values", "param"),
    [
        ("messages", [message()] * 257, "messages"),
        ("messages", [{}] * 50_000, "messages"),
        ("messages", [{"role": "user", "content": [{"type": "text", "text": "a"}] * 65}], "messages[0].content"),
        ("messages", [{"role": "user", "content": [{}] * 50_000}], "messages"),
        ("messages", [message(), *[{"role": "user", "content": "word " * 19_000}] * 3], "messages"),
        ("messages", [{"role": "user", "content": "a" * 100_001}], "messages[0].content"),
        ("messages", [{"role": "user", "content": "a", **dict.fromkeys(map(str, range(2000)), 1)}], None),
        ("stop", ["a"] * 5, "stop"),
        ("stop", ["a" * 257], "stop[0]"),
        ("stop", "a" * 257, "stop"),
        ("n", 9, "n"),
        ("max_tokens", 10**6, "max_tokens"),
        ("top_logprobs", 21, "top_logprobs"),
        ("logprobs", 5, "logprobs"),
        ("metadata", dict.fromkeys(map(str, range(17)), "x"), "metadata"),
        ("user", "x" * 513, "user"),
        ("merge", "x" * 201, "merge"),
        ("weights", dict.fromkeys(map(str, range(65)), 1.0), "weights"),
        ("prompt_embeds", "AAAA", "prompt_embeds"),
        ("chat_template", "{{ 1 }}", "chat_template"),
        ("structured_outputs", {"regex": "(a+)+"}, "structured_outputs"),
        ("guided_regex", "(a+)+", "guided_regex"),
        ("kv_transfer_params", {}, "kv_transfer_params"),
        ("mm_processor_kwargs", {}, "mm_processor_kwargs"),
        ("cache_salt", "x", "cache_salt"),
        ("allowed_token_ids", [1], "allowed_token_ids"),
        ("truncate_prompt_tokens", 1, "truncate_prompt_tokens"),
    ],
)
async def test_completion_fields_are_bounded(field: str, values: Any, param: str | None) -> None:
    assert error_of(await post(CHAT, many(COMPLETION, field, values)))["param"] == param


@pytest.mark.parametrize(
    ("field", "values", "param"),
    [
        ("models", [LLAVA] * 65, "models"),
        ("models", [3] * 50_000, "models"),
        ("weights", dict.fromkeys(map(str, range(65)), 1.0), "weights"),
        ("question", "a" * 4001, "question"),
        ("merge", "x" * 201, "merge"),
        ("max_tokens", 4097, "max_tokens"),
        ("quorum", 65, "quorum"),
    ],
)
async def test_task_fields_are_bounded(field: str, values: Any, param: str) -> None:
    assert error_of(await post(TASK, many(VQA, field, values)))["param"] == param


async def test_form_fields_are_bounded() -> None:
    fields = b"".join(b'--b\r\ncontent-disposition: form-data; name="f%d"\r\n\r\nx\r\n' % i for i in range(100))
    error_of(await post(TASK, fields + b"--b--\r\n", "multipart/form-data; boundary=b"))
    weights = b'--b\r\ncontent-disposition: form-data; name="weights"\r\n\r\n' + b"[" * 100_000 + b"\r\n--b--\r\n"
    assert error_of(await post(TASK, weights, "multipart/form-data; boundary=b"))["param"] == "weights"


def optional(count: int) -> dict[str, Any]:
    return {"type": "object", "properties": {f"a{i}": {} for i in range(count)}}


@pytest.mark.parametrize(
    "schema",
    [
        optional(101),
        {"$defs": {"a": optional(60), "b": optional(60)}},
        {**optional(9), "minProperties": 3},
        {**optional(9), "maxProperties": 3},
        {**optional(120), "required": ["a0", 7, None, ["a1"]]},
    ],
)
async def test_response_schema_is_bounded(schema: dict[str, Any]) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    assert (
        error_of(await post(CHAT, many(COMPLETION, "response_format", wanted)))["param"]
        == "response_format.json_schema.schema"
    )


async def test_required_properties_are_cheap() -> None:
    schema = {**optional(150), "required": [f"a{i}" for i in range(150)]}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    assert (await post(CHAT, many(COMPLETION, "response_format", wanted))).status_code == 200


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
FIELDS = (
    "model",
    "messages",
    "stop",
    "n",
    "response_format",
    "weights",
    "models",
    "metadata",
    "seed",
    "image",
    "stream",
)


@pytest.mark.slow
@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4), st.sampled_from([CHAT, TASK]))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
async def test_any_field_value_gives_no_server_error(fields: dict[str, Any], path: str) -> None:
    given = (COMPLETION if path == CHAT else VQA) | fields
    async with calling(plain()) as client:
        reply = await client.post(path, content=json.dumps(given).encode("utf-8", "replace"))
    assert reply.status_code < 500, reply.text


@pytest.mark.parametrize(
    ("body", "quick"),
    [
        (b'{"image": "data:"}', True),
        (b'{"video": "data:"}', True),
        (b'{"image": "' + b"A" * 100_000 + b'"}', False),
    ],
)
def test_only_small_bodies_are_parsed_on_the_event_loop(body: bytes, quick: bool) -> None:
    assert is_quick(len(body)) == quick


@settings(deadline=None)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=60),
            st.sampled_from([b"--x\r\n", b"--x--\r\n", b"\r\n\r\n", b"\r\n", b"--x", b'name="image"', b'filename="a"']),
            st.sampled_from([b"content-disposition: form-data; ", b"content-type: image/png\r\n", b"; boundary=x"]),
        ),
        max_size=12,
    ),
    st.sampled_from(["x", "", '"x"', "x" * 200, "x; charset=utf-16"]),
)
async def test_any_form_gives_no_server_error(parts: list[bytes], boundary: str) -> None:
    kind = {"content-type": f"multipart/form-data; boundary={boundary}"}
    async with calling(plain()) as client:
        reply = await client.post("/v1/tasks/caption", content=b"".join(parts), headers=kind)
    assert 400 <= reply.status_code < 500 and reply.json()["error"]["message"]
