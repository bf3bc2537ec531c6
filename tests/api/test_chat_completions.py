"""Chat completions in OpenAI's format: supported, ignored and refused fields, with one model and with tasks."""

import json
import time
from typing import Any

import httpx
import pytest
from served import LLAVA, PALIGEMMA, URL, calling, frames, message, plain, router, served

from serve.api.app import create_app
from serve.engines.base import Piece, Token
from serve.engines.fake import FakeEngine
from serve.models import MODELS
from serve.worker import Worker

PATH = "/v1/chat/completions"


def body(model: str = LLAVA, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [message()], **more}


async def complete(given: dict[str, Any], llava: FakeEngine | None = None, paligemma: FakeEngine | None = None) -> Any:
    async with calling(served(llava, paligemma) if llava or paligemma else plain()) as client:
        return await client.post(PATH, json=given)


async def chunks(given: dict[str, Any], *engines: FakeEngine) -> list[dict[str, Any]]:
    reply = await complete(given | {"stream": True}, *engines)
    assert reply.status_code == 200, reply.text
    events = frames(reply.text)
    assert events[-1] == (None, "[DONE]")
    return [json.loads(data) for _, data in events[:-1]]


def refused(reply: httpx.Response, param: str | None, code: str | None = None, status: int = 400) -> None:
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (status, param), error
    assert code is None or error["code"] == code


# One model


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


# Conversations


def conversation(*messages: dict[str, Any]) -> dict[str, Any]:
    return {"model": "llava-1.5-7b", "messages": list(messages)}


async def ask_real_llava(given: dict[str, Any]) -> tuple[httpx.Response, FakeEngine]:
    engine = FakeEngine()
    worker = Worker(MODELS["llava-1.5-7b"], engine)
    worker.mark("ready", "ready")
    app_router = router()
    app_router.routes["llava-1.5-7b"] = worker
    async with calling(create_app(app_router)) as client:
        return await client.post(PATH, json=given), engine


async def test_history_and_system_message_reach_llava() -> None:
    echoed = {"role": "assistant", "content": "red", "refusal": None, "tool_calls": None, "audio": None}
    reply, engine = await ask_real_llava(
        conversation(
            {"role": "developer", "content": "Be brief."},
            message("what?"),
            echoed | {"annotations": [], "function_call": None},
            {"role": "user", "content": "sure?", "name": "ann"},
        )
    )
    assert reply.status_code == 200, reply.text
    assert engine.prompts[0].text == "Be brief. USER: <image>\nwhat? ASSISTANT: red</s>USER: sure? ASSISTANT:"


async def test_conversation_without_image_is_answered() -> None:
    reply, engine = await ask_real_llava(conversation({"role": "user", "content": "hello"}))
    assert reply.status_code == 200 and engine.prompts[0].image is None
    refused(await complete({"model": PALIGEMMA, "messages": [message(image=None)]}), "messages[0].content")


@pytest.mark.parametrize("order", ["image", "image text", "text image", "text image text"])
async def test_text_and_image_come_in_any_order(order: str) -> None:
    parts = {"image": {"type": "image_url", "image_url": URL}, "text": {"type": "text", "text": "caption en"}}
    paligemma = FakeEngine()
    given = {"model": PALIGEMMA, "messages": [{"role": "user", "content": [parts[name] for name in order.split()]}]}
    assert (await complete(given, None, paligemma)).status_code == 200
    assert paligemma.prompts[0].text.startswith("caption en") and paligemma.prompts[0].image is not None


@pytest.mark.parametrize(
    ("messages", "param", "code"),
    [
        ([], "messages", "invalid_value"),
        ([{"role": "user"}], "messages[0].content", "missing_required_parameter"),
        ([{"role": "user", "content": None}], "messages[0].content", "invalid_type"),
        ([{"role": "user", "content": 7}], "messages[0].content", "invalid_type"),
        ([{"role": "robot", "content": "x"}], "messages[0].role", "invalid_value"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text", None),
        ([{"role": "user", "content": [{"type": "text", "text": 7}]}], "messages[0].content[0].text", "invalid_type"),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], "messages[0].content[0]", "invalid_value"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content[0].image_url", None),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], None, "missing_required_parameter"),
        ([message(image="http://localhost/x.png")], "messages[0].content[0].image_url", "invalid_image_url"),
        ([message(image="data:image/png;base64,%%%")], "messages[0].content[0].image_url", "invalid_image_url"),
        ([message() | {"tool_calls": [{}]}], "messages[0].tool_calls", "unsupported_parameter"),
        ([message() | {"mood": "x"}], "messages[0].mood", "unknown_parameter"),
        ([message(), message()], "messages[1].content[0]", "invalid_value"),
        ([{"role": "system", "content": message()["content"]}], "messages[0].content[0]", "invalid_value"),
        ([message(), {"role": "assistant", "content": "x"}], "messages", "invalid_value"),
    ],
)
async def test_invalid_message_is_named_by_its_path(messages: Any, param: str | None, code: str | None) -> None:
    reply = await complete({"model": LLAVA, "messages": messages})
    refused(reply, param or "messages[0].content[0].image_url.url", code)


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (["x"], "messages[0]"),
        ([{"role": "user", "content": ["x"]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": None}]}], "messages[0].content[0].image_url"),
    ],
)
async def test_value_that_is_no_object_is_refused_without_class_names(messages: Any, param: str) -> None:
    reply = await complete({"model": LLAVA, "messages": messages})
    refused(reply, param, "invalid_type")
    assert reply.json()["error"]["message"] == f"{param}: Input should be an object."


# Fields


async def test_fields_without_effect_are_accepted() -> None:
    quiet = {
        "user": "ann",
        "metadata": {"a": "b"},
        "store": False,
        "tools": [],
        "tool_choice": "none",
        "parallel_tool_calls": True,
        "functions": None,
        "logit_bias": {},
        "modalities": ["text"],
        "audio": None,
        "service_tier": "auto",
        "reasoning_effort": "none",
        "safety_identifier": "x",
        "prompt_cache_key": "x",
        "response_format": {"type": "text"},
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "ignore_eos": False,
        "logprobs": False,
        "n": 1,
        "stop": None,
        "seed": None,
        "stream": None,
        "stream_options": None,
        "presence_penalty": 0,
        "max_tokens": 5,
        "max_completion_tokens": 5,
    }
    for model in (LLAVA, "vqa", "vqa:*"):
        reply = await complete(body(model, **quiet))
        assert reply.status_code == 200, reply.text


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("tools", [{"type": "function", "function": {"name": "look"}}], "unsupported_parameter"),
        ("tool_choice", "required", "invalid_value"),
        ("functions", [{}], "unsupported_parameter"),
        ("modalities", ["text", "audio"], "unsupported_parameter"),
        ("audio", {"voice": "x"}, "unsupported_parameter"),
        ("logit_bias", {"1": 5}, "unsupported_parameter"),
        ("top_k", 5, "unsupported_parameter"),
        ("reasoning_effort", "high", "unsupported_parameter"),
        ("chat_template", "x", "unknown_parameter"),
        ("prompt_embeds", "x", "unknown_parameter"),
        ("n", 9, "invalid_value"),
        ("n", True, "invalid_type"),
        ("stop", ["a", "b", "c", "d", "e"], "invalid_value"),
        ("stop", "", "invalid_value"),
        ("stop", [""], "invalid_value"),
        ("temperature", "0", "invalid_type"),
        ("temperature", 2.1, "invalid_value"),
        ("top_p", -0.1, "invalid_value"),
        ("top_logprobs", 2, "invalid_value"),
        ("logprobs", 1, "invalid_type"),
        ("max_tokens", 0, "invalid_value"),
        ("stream", 1, "invalid_type"),
        ("deadline_s", 0, "invalid_value"),
        ("quorum", 1, "invalid_value"),
        ("weights", {LLAVA: 1}, "invalid_value"),
        ("min_agreement", 0.5, "invalid_value"),
        ("response_format", {"type": "xml"}, "invalid_value"),
    ],
)
async def test_unsupported_fields_of_a_model_are_refused(field: str, value: Any, code: str) -> None:
    refused(await complete(body(**{field: value})), field, code)


async def test_different_max_tokens_fields_are_refused() -> None:
    refused(await complete(body(max_tokens=4, max_completion_tokens=5)), "max_tokens")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 2),
        ("stop", ""),
        ("stop", ["a", ""]),
        ("logprobs", True),
        ("presence_penalty", 0.5),
        ("frequency_penalty", 0.5),
        ("response_format", {"type": "json_object"}),
        ("merge", "dice"),
        ("quorum", 3),
        ("min_agreement", -0.1),
        ("max_completion_tokens", 5000),
    ],
)
async def test_unsupported_fields_of_a_task_are_refused(field: str, value: Any) -> None:
    refused(await complete(body("vqa", temperature=0.5, **{field: value})), field)


# JSON schemas


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


# Tasks


async def test_task_returns_the_merged_reply() -> None:
    reply = (await complete(body("vqa"), FakeEngine("a red square"), FakeEngine("red"))).json()
    assert len(reply["choices"]) == 1
    choice = reply["choices"][0]
    assert choice["message"]["content"] == "a red square" and choice["finish_reason"] == "stop"
    about = choice["diptych"]
    assert about["model"] is None and about["status"] == "ok" and about["method"] == "vote"
    assert about["models"] == [LLAVA, PALIGEMMA] and about["result"] == {"answer": "a red square"}
    assert reply["usage"]["completion_tokens"] == 4


@pytest.mark.parametrize("names", ["*", f"{PALIGEMMA},{LLAVA}", f" {LLAVA} , {PALIGEMMA} "])
async def test_task_with_models_returns_each_reply(names: str) -> None:
    reply = (await complete(body(f"vqa:{names}"), FakeEngine("a red square", fail_after=2), FakeEngine("red"))).json()
    first, second, third = reply["choices"]
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2]
    assert first["message"]["content"] == "red"
    assert second["message"]["content"] == "a red " and second["finish_reason"] == "stop"
    assert second["diptych"]["model"] == LLAVA and second["diptych"]["status"] == "error"
    assert second["diptych"]["error"]["code"] == "model_error" and "text" not in second["diptych"]
    assert third["diptych"]["model"] == PALIGEMMA and third["diptych"]["result"] == {"answer": "red"}


async def test_task_with_a_single_model_has_two_choices() -> None:
    reply = (await complete(body(f"vqa:{PALIGEMMA}"))).json()
    assert [choice["diptych"]["model"] for choice in reply["choices"]] == [None, PALIGEMMA]


async def test_replies_stream_interleaved_and_the_merged_reply_comes_last() -> None:
    slow, fast = FakeEngine("a red square", delay_s=0.02), FakeEngine("red", first_delay_s=0.03)
    sent = await chunks(body("vqa:*", stream_options={"include_usage": True}), slow, fast)
    choices = [chunk["choices"][0] for chunk in sent[:-1]]
    indexes = [choice["index"] for choice in choices]
    assert indexes[:3] == [0, 1, 2]  # announced in order, before any text
    of_models = indexes[3:-2]
    assert indexes[-2:] == [0, 0] and set(of_models) == {1, 2}
    assert of_models not in ([1] * 4 + [2] * 2, [2] * 2 + [1] * 4)  # interleaved
    texts = {at: "".join(c["delta"].get("content", "") for c in choices if c["index"] == at) for at in (0, 1, 2)}
    assert texts == {0: "a red square", 1: "a red square", 2: "red"}
    for at in (0, 1, 2):
        own = [choice for choice in choices if choice["index"] == at]
        assert own[0]["delta"]["role"] == "assistant" and own[0]["diptych"]["status"] == "speaking"
        assert [choice["finish_reason"] for choice in own] == [None] * (len(own) - 1) + ["stop"]
        assert own[-1]["diptych"]["status"] == "ok"
    assert sent[-1]["usage"]["completion_tokens"] == 4


@pytest.mark.parametrize("model", ["vqa", "vqa:*"])
async def test_choice_of_models_that_disagree_says_so(model: str) -> None:
    engines = FakeEngine("red"), FakeEngine("blue")
    given = body(model, min_agreement=0.9)
    whole = (await complete(given, *engines)).json()["choices"]
    streamed = [chunk["choices"][0] for chunk in await chunks(given, *engines)]
    texts = [
        "".join(choice["delta"].get("content", "") for choice in streamed if choice["index"] == at)
        for at in range(len(whole))
    ]
    assert texts == [choice["message"]["content"] for choice in whole]
    assert texts == ["The models disagree.", "red", "blue"][: len(whole)]
    for first in (whole[0], streamed[-1]):
        assert first["index"] == 0 and first["finish_reason"] == "stop" and first["diptych"]["result"] is None
        assert (first["diptych"]["status"], first["diptych"]["error"]["code"]) == ("error", "models_disagree")


async def test_choices_are_announced_in_order_before_any_text() -> None:
    quick, slow = FakeEngine("red"), FakeEngine("a red square", first_delay_s=0.05)
    every = [None, LLAVA, PALIGEMMA]
    for given, engines, models in (
        (body("vqa:*"), (slow, quick), every),  # the second model answers first
        (body("caption:*"), (slow, quick), every),
        (body(f"caption:{PALIGEMMA},{LLAVA}"), (slow, quick), every),  # catalogue order, not the request's
        (body("caption:*"), (FakeEngine("a", first_delay_s=0.05), FakeEngine("b", fail_after=0)), every),
        (body("vqa"), (slow, quick), [None]),
        (body(n=3), (quick, quick), [None] * 3),
    ):
        choices = [chunk["choices"][0] for chunk in await chunks(given, *engines)]
        opening, later = choices[: len(models)], choices[len(models) :]
        assert [choice["index"] for choice in opening] == list(range(len(models)))
        assert all(choice["delta"] == {"role": "assistant", "content": ""} for choice in opening)
        assert [choice.get("diptych", {}).get("model") for choice in opening] == models
        assert not any("role" in choice["delta"] for choice in later)  # none is announced twice


async def test_failed_choice_is_closed_and_others_continue() -> None:
    sent = await chunks(body("vqa:*"), FakeEngine("a b", fail_after=1), FakeEngine("red", first_delay_s=0.02))
    choices = [chunk["choices"][0] for chunk in sent]
    closing = {choice["index"]: choice for choice in choices if choice["finish_reason"]}
    assert closing[1]["finish_reason"] == "stop" and closing[1]["diptych"]["status"] == "error"
    assert closing[2]["diptych"]["status"] == closing[0]["diptych"]["status"] == "ok"


async def test_task_without_models_streams_a_single_choice() -> None:
    sent = await chunks(body("vqa"), FakeEngine("a red square"), FakeEngine("red"))
    assert [chunk["choices"][0]["delta"] for chunk in sent] == [
        {"role": "assistant", "content": ""},
        {"content": "a red square"},
        {},
    ]


async def test_stream_without_any_answer_ends_with_an_error() -> None:
    sent = await chunks(body("vqa:*"), FakeEngine("a b", fail_after=1), FakeEngine("a b", fail_after=1))
    assert sent[-1]["error"]["code"] == "no_model_answered"
    refused(
        await complete(body("vqa", stream=True), FakeEngine(fail_after=0), FakeEngine(fail_after=0)),
        None,
        "no_model_answered",
        503,
    )


async def test_phrases_are_split_at_commas_and_semicolons() -> None:
    paligemma = FakeEngine("")
    reply = await complete(body("detect") | {"messages": [message("a cat; a dog, a bird;")]}, None, paligemma)
    assert paligemma.prompts[0].text == "detect cat ; dog ; bird"  # PaliGemma gets names without articles
    assert reply.json()["choices"][0]["message"]["content"] == "nothing found"


async def test_caption_needs_no_text() -> None:
    for text in (None, "", "Describe it."):
        reply = await complete({"model": "caption", "messages": [message(text)]}, FakeEngine("a red square"))
        assert reply.json()["choices"][0]["message"]["content"] in ("a red square", "red")


async def test_last_user_message_is_the_question() -> None:
    paligemma = FakeEngine()
    history = [
        {"role": "system", "content": "Be brief."},
        message("what?"),
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": "how many?"},
    ]
    await complete({"model": f"vqa:{PALIGEMMA}", "messages": history}, None, paligemma)
    assert paligemma.prompts[0].text == "answer en how many?" and paligemma.prompts[0].image is not None


async def test_task_fields_are_passed_on() -> None:
    llava = FakeEngine("a", delay_s=5)
    reply = await complete(body("vqa:*", quorum=1, seed=3, max_tokens=7, temperature=0.5, weights={LLAVA: 2}), llava)
    assert reply.json()["choices"][1]["diptych"]["error"]["code"] == "quorum_reached"
    drawn = llava.prompts[0].sampling
    assert (drawn.seed, drawn.max_tokens, drawn.temperature) == (3, 7, 0.5)
    plain = FakeEngine()
    await complete(body("vqa"), plain)
    assert (plain.prompts[0].sampling.temperature, plain.prompts[0].sampling.max_tokens) == (0.0, 32)


@pytest.mark.parametrize("model", ["vqa", "caption:*", f"detect:{LLAVA}", "ocr"])
async def test_sampling_fields_reach_every_model_of_a_fan_out(model: str) -> None:
    """`vllm bench serve` sends ignore_eos to every server."""
    text = "[0.1, 0.1, 0.5, 0.5]" if "detect" in model else "red"
    llava, paligemma = FakeEngine(text), FakeEngine("red")
    more = {"ignore_eos": True, "stop": ["a", "b"], "seed": -3, "temperature": 0.7, "top_p": 0.5}
    given = body(model, max_completion_tokens=9, stream=True, stream_options={"include_usage": True}, **more)
    reply = await complete(given, llava, paligemma)
    assert reply.status_code == 200, reply.text
    prompts = [*llava.prompts, *paligemma.prompts]
    assert len(prompts) == (1 if "detect" in model else 2)
    for prompt in prompts:
        drawn = prompt.sampling
        assert (drawn.ignore_eos, drawn.stop, drawn.seed, drawn.max_tokens) == (True, ("a", "b"), -3, 9)
        assert (drawn.temperature, drawn.top_p) == (0.7, 0.5)


@pytest.mark.parametrize("model", [LLAVA, "vqa", "vqa:*", "caption"])
async def test_top_p_of_zero_is_accepted(model: str) -> None:
    llava = FakeEngine("red")
    for more in ({"top_p": 0}, {"top_p": 0.0, "temperature": 1}, {"top_p": 0, "temperature": 0, "stop": "x"}):
        assert (await complete(body(model, **more), llava)).status_code == 200
        assert llava.prompts[-1].sampling.top_p == 0


@pytest.mark.parametrize(
    ("model", "text", "image", "status", "param", "code"),
    [
        ("vqa", "what?", None, 400, "messages[0].content", "missing_image"),
        ("vqa", None, URL, 400, "messages[0].content", "missing_text"),
        ("vqa", "\r\n", URL, 400, "messages[0].content", "missing_text"),
        ("chat", "\u200b\ufeff", URL, 400, "messages[0].content", "missing_text"),
        ("vqa:*", "\u3000\u00a0\u2060", URL, 400, "messages[0].content", "missing_text"),
        ("detect", " ; ", URL, 400, "messages[0].content", "invalid_value"),
        ("vqa", "x" * 5000, URL, 400, "messages[0].content", "invalid_value"),
        ("vqa:", "what?", URL, 400, "model", "invalid_value"),
        ("vqa:nobody", "what?", URL, 404, "model", "model_not_found"),
        (f"chat:{PALIGEMMA}", "what?", URL, 400, "model", "task_not_supported"),
        ("dance", "what?", URL, 404, "model", "model_not_found"),
        ("llava-1.5-7b", "what?", URL, 404, "model", "model_not_found"),
        ("*", "what?", URL, 404, "model", "model_not_found"),
    ],
)
async def test_invalid_task_completion_is_refused(
    model: str, text: str | None, image: str | None, status: int, param: str, code: str
) -> None:
    refused(await complete({"model": model, "messages": [message(text, image)]}), param, code, status)


async def test_question_refused_by_every_model_is_400() -> None:
    for stream in (False, True):
        for model in ("vqa", "vqa:*"):
            reply = await complete(body(model, stream=stream), FakeEngine(max_chars=3), FakeEngine(max_chars=3))
            refused(reply, "messages[0].content", "context_length_exceeded")
