"""Chat completions of one model in OpenAI's format, whole and streamed, with JSON schemas."""

import asyncio
import json
import time
from typing import Any

import pytest
from chat_client import PATH, body, chunks, complete, refused
from served import LLAVA, PALIGEMMA, calling, served

from serve.engines.base import Piece, Token
from serve.engines.fake import FakeEngine


async def test_completion_by_a_model_has_openai_fields_only() -> None:
    llava = FakeEngine("a red square")
    reply = (await complete(body(), llava)).json()
    assert reply["object"] == "chat.completion" and reply["id"].startswith("chatcmpl-") and reply["model"] == LLAVA
    assert abs(reply["created"] - time.time()) < 5
    assert reply["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "a red square", "refusal": None},
            "finish_reason": "stop",
            "logprobs": None,
        }
    ]
    usage = reply["usage"]
    assert usage["completion_tokens"] == 3 and usage["prompt_tokens"] > 49
    assert usage["total_tokens"] == usage["prompt_tokens"] + 3
    prompt = llava.prompts[0]
    assert prompt.text == "USER: <image>\nwhat? ASSISTANT:"
    assert prompt.image is not None and (prompt.image.width, prompt.image.height) == (64, 48)


async def test_sampling_of_a_model_has_openai_defaults() -> None:
    llava = FakeEngine()
    await complete(body(), llava)
    drawn = llava.prompts[0].sampling
    assert (drawn.temperature, drawn.top_p, drawn.max_tokens, drawn.seed, drawn.stop) == (1.0, 1.0, 512, None, ())
    assert drawn.json_schema is None and drawn.top_logprobs == 0 and not drawn.ignore_eos


@pytest.mark.parametrize("model", [LLAVA, "vqa", "vqa:*"])
async def test_flex_tier_becomes_batch_priority(model: str) -> None:
    llava = FakeEngine("red")
    for tier, batch in ((None, False), ("auto", False), ("flex", True)):
        assert (await complete(body(model=model, service_tier=tier), llava)).status_code == 200
        assert llava.prompts[-1].batch == batch
    refused(await complete(body(model=model, service_tier="priority"), llava), "service_tier")


async def test_sampling_fields_reach_the_engine() -> None:
    llava = FakeEngine()
    await complete(
        body(
            max_completion_tokens=9,
            temperature=0,
            top_p=0.5,
            seed=-3,
            stop=["a", "b"],
            presence_penalty=1,
            frequency_penalty=-0.5,
            ignore_eos=True,
            logprobs=True,
            top_logprobs=2,
        ),
        llava,
    )
    drawn = llava.prompts[0].sampling
    assert (drawn.max_tokens, drawn.temperature, drawn.top_p, drawn.seed) == (9, 0.0, 0.5, -3)
    assert (drawn.stop, drawn.presence_penalty, drawn.frequency_penalty) == (("a", "b"), 1.0, -0.5)
    assert drawn.ignore_eos and drawn.top_logprobs == 2


async def test_choices_have_increasing_seeds() -> None:
    llava = FakeEngine("a b")
    reply = (await complete(body(n=3, seed=5, max_tokens=1), llava)).json()
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2]
    assert [choice["finish_reason"] for choice in reply["choices"]] == ["length"] * 3
    assert sorted(prompt.sampling.seed or 0 for prompt in llava.prompts) == [5, 6, 7]
    assert reply["usage"]["completion_tokens"] == 3
    single = (await complete(body())).json()["usage"]["prompt_tokens"]
    assert reply["usage"]["prompt_tokens"] == single  # counted once


async def test_log_probabilities_have_openai_format() -> None:
    reply = (await complete(body(logprobs=True, top_logprobs=1), FakeEngine("né"))).json()
    token = reply["choices"][0]["logprobs"]["content"][0]
    assert token == {
        "token": "né",
        "logprob": -0.1,
        "bytes": [110, 195, 169],
        "top_logprobs": [{"token": "né", "logprob": -0.1, "bytes": [110, 195, 169]}],
    }
    impossible = (await complete(body(logprobs=True), FakeEngine("x", logprob=float("-inf")))).json()
    assert impossible["choices"][0]["logprobs"]["content"][0]["logprob"] == -9999.0
    streamed = await chunks(body(logprobs=True), FakeEngine("a b"))
    logprobs = [chunk["choices"][0]["logprobs"] for chunk in streamed]
    assert [entry["content"][0]["token"] for entry in logprobs if entry] == ["a ", "b"]


async def test_stream_has_role_text_and_finish_chunks() -> None:
    sent = await chunks(body(), FakeEngine("a b"))
    choices = [chunk["choices"][0] for chunk in sent]
    assert [choice["delta"] for choice in choices] == [
        {"role": "assistant", "content": ""},
        {"content": "a "},
        {"content": "b"},
        {},
    ]
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, "stop"]
    assert {chunk["object"] for chunk in sent} == {"chat.completion.chunk"}
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in sent}) == 1
    assert not any("usage" in chunk or "diptych" in chunk["choices"][0] for chunk in sent)


async def test_stream_has_usage_only_with_stream_options() -> None:
    sent = await chunks(body(stream_options={"include_usage": True}), FakeEngine("a b"))
    assert sent[-1]["choices"] == [] and sent[-1]["usage"]["completion_tokens"] == 2
    assert [chunk["usage"] for chunk in sent[:-1]] == [None] * 4
    along = {"include_usage": True, "continuous_usage_stats": True, "include_obfuscation": False}
    sent = await chunks(body(stream_options=along), FakeEngine("a b"))
    assert [chunk["usage"]["completion_tokens"] for chunk in sent] == [1, 1, 2, 2, 2]
    sent = await chunks(body(stream_options={"continuous_usage_stats": True}), FakeEngine("a b"))
    assert sent[-1]["choices"] and sent[-1]["usage"]["completion_tokens"] == 2
    assert "usage" not in (await chunks(body(stream_options={})))[0]


async def test_streamed_choices_interleave() -> None:
    sent = await chunks(body(n=2), FakeEngine("a b", delay_s=0.01))
    indexes = [chunk["choices"][0]["index"] for chunk in sent]
    assert sorted(indexes) == [0] * 4 + [1] * 4 and indexes != sorted(indexes)
    for at in (0, 1):
        assert [c["choices"][0]["delta"].get("role") for c in sent if c["choices"][0]["index"] == at][0] == "assistant"


class LastFirstEngine(FakeEngine):
    """An engine that writes the choices one after the other, from the last to the first. It needs seeds from 0 on."""

    def __init__(self, n: int) -> None:
        super().__init__("a b")
        self.ended = [asyncio.Event() for _ in range(n)]

    async def generate(self, prompt: Any) -> Any:
        at = prompt.sampling.seed
        for later in self.ended[at + 1 :]:
            await later.wait()
        async for piece in super().generate(prompt):
            yield piece
        self.ended[at].set()


@pytest.mark.parametrize("logprobs", [False, True])
async def test_streamed_choices_open_in_order_whichever_is_generated_first(logprobs: bool) -> None:
    sent = await chunks(body(n=3, seed=0, logprobs=logprobs), LastFirstEngine(3))
    choices = [chunk["choices"][0] for chunk in sent]
    assert [choice["index"] for choice in choices] == [0, 1, 2] + [2] * 3 + [1] * 3 + [0] * 3
    assert [choice["delta"].get("role") for choice in choices] == ["assistant"] * 3 + [None] * 9
    assert [choice["delta"].get("content") for choice in choices] == [""] * 3 + ["a ", "b", None] * 3


async def test_failing_model_is_503_or_an_error_in_the_stream() -> None:
    refused(await complete(body(), FakeEngine("a b", fail_after=1)), None, "model_error", 503)
    refused(await complete(body(stream=True), FakeEngine("a b", fail_after=0)), None, "model_error", 503)
    sent = await chunks(body(), FakeEngine("a b", fail_after=1))
    assert sent[-1]["error"]["code"] == "model_error" and sent[-2]["choices"][0]["delta"] == {"content": "a "}


async def test_model_that_is_not_ready_is_503() -> None:
    app = served(ready=False)
    async with calling(app) as client:
        for stream in (False, True):
            reply = await client.post(PATH, json=body(stream=stream))
            refused(reply, None, "model_starting", 503)
            assert reply.headers["retry-after"]


async def test_endless_reply_is_cut_at_the_deadline() -> None:
    llava = FakeEngine("a b c", delay_s=5)
    refused(await complete(body(deadline_s=0.05), llava), None, "deadline_exceeded", 503)
    assert llava.speaking == 0 and llava.aborted == 1


async def test_prompt_beyond_the_context_is_an_error_about_messages() -> None:
    refused(await complete(body(), FakeEngine(max_chars=3)), "messages", "context_length_exceeded")


class UnfinishedEngine(FakeEngine):
    """An engine whose stream ends without a finish reason."""

    def generate(self, prompt: Any) -> Any:
        async def nothing() -> Any:
            yield Piece("a", (Token("a", 0.0),))

        return nothing()


async def test_stream_without_finish_reason_is_an_error() -> None:
    refused(await complete(body(), UnfinishedEngine()), None, "engine_dead", 503)


async def test_conversations_are_counted_in_metrics() -> None:
    app = served(FakeEngine("red"), FakeEngine("red", fail_after=0))
    async with calling(app) as client:
        await client.post(PATH, json=body())
        await client.post(PATH, json=body(PALIGEMMA))
        text = (await client.get("/metrics")).text
    assert f'diptych_replies_total{{model="{LLAVA}",status="ok",task="conversation"}} 1.0' in text
    assert f'diptych_replies_total{{model="{PALIGEMMA}",status="error",task="conversation"}} 1.0' in text


def schema(inner: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": inner, "strict": True}}


async def test_json_schema_reaches_the_engine() -> None:
    llava = FakeEngine()
    wanted = {"type": "object", "properties": {"pattern": {"type": "string", "maxLength": 9}}}
    assert (await complete(body(response_format=schema(wanted)), llava)).status_code == 200
    assert json.loads(llava.prompts[0].sampling.json_schema or "") == wanted
    tree = {"properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, "required": ["next"]}
    assert (await complete(body(response_format=schema(tree)))).status_code == 200
    assert (await complete(body(response_format={"type": "json_object"}), llava)).status_code == 200
    assert llava.prompts[1].sampling.json_schema == '{"type":"object"}'


@pytest.mark.parametrize(
    "inner",
    [
        {"pattern": "(a+)+"},
        {"properties": {"a": {"pattern": "x"}}},
        {"patternProperties": {"a": {}}},
        {"items": {"maxLength": 10**6}},
        {"minItems": -1},
        {"$ref": "https://example.org/schema"},
        {"description": "x" * 20_000},
        json.loads('{"items":' * 40 + "{}" + "}" * 40),
        {"$ref": "#"},
        {
            "items": {"$ref": "#/$defs/a"},
            "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/b"}]}, "b": {"$ref": "#/$defs/a"}},
        },
    ],
)
async def test_unsafe_schemas_are_refused(inner: Any) -> None:
    refused(await complete(body(response_format=schema(inner))), "response_format.json_schema.schema")
