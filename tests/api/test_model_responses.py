"""POST /v1/responses by the unmodified openai package: items, events, fan-outs, and what is refused by which name."""

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from fastapi import FastAPI
from openai.types.responses import Response
from pydantic import BaseModel
from served import LLAVA, PALIGEMMA, URL, calling, frames, router, served

from serve.api.app import create_app
from serve.api.model_responses.request import ResponseRequest
from serve.api.model_responses.response import ResponseEvents, ResponseHead
from serve.engines.base import Prompt, ToolCallPart
from serve.engines.fake import FakeEngine
from serve.models import MODELS
from serve.tasks.reply import Usage
from serve.worker import Worker

TEXT, OTHER = "a red square", "red"
IMAGE = {"type": "input_image", "image_url": URL, "detail": "auto"}
REMOTE = {"$ref": "http://a"}
QUESTION: list[Any] = [{"role": "user", "content": [IMAGE, {"type": "input_text", "text": "what?"}]}]


class Seen(BaseModel):
    colour: str


def reply(prompt: Prompt) -> str:
    return '{"colour":"red"}' if prompt.sampling.json_schema else TEXT


LLAVA_ENGINE = FakeEngine(reply)
REAL = "llava-1.5-7b"


def serving() -> FastAPI:
    """Return an app of the toys, and of a published LLaVA, which converses, with the first one's engine."""
    app_router = router(LLAVA_ENGINE, FakeEngine(OTHER))
    app_router.routes[REAL] = worker = Worker(MODELS[REAL], LLAVA_ENGINE)
    worker.mark("ready", "ready")
    return create_app(app_router)


APP = serving()


@pytest.fixture
async def client() -> AsyncIterator[openai.AsyncOpenAI]:
    LLAVA_ENGINE.prompts.clear()
    async with calling(APP) as http:
        base = "http://diptych/v1"
        yield openai.AsyncOpenAI(base_url=base, api_key="none", max_retries=0, http_client=http)


async def respond(client: openai.AsyncOpenAI, model: str = LLAVA, **fields: Any) -> Response:
    whole: Response = await client.responses.create(**{"model": model, "input": QUESTION, **fields})
    return whole


@pytest.mark.slow
async def test_response_has_text_usage_and_the_fields_of_the_request(client: openai.AsyncOpenAI) -> None:
    whole = await respond(client, max_output_tokens=16, temperature=0, metadata={"a": "b"}, store=False, user="ann")
    assert whole.output_text == TEXT and whole.status == "completed" and whole.id == f"resp_{whole._request_id}"
    assert [item.type for item in whole.output] == ["message"]
    assert whole.usage is not None and whole.usage.output_tokens == 3 and whole.usage.total_tokens > 50
    assert (whole.metadata, whole.max_output_tokens, whole.temperature) == ({"a": "b"}, 16, 0)
    assert LLAVA_ENGINE.prompts[0].image is not None and LLAVA_ENGINE.prompts[0].sampling.max_tokens == 16


async def test_response_cut_by_its_length_is_incomplete(client: openai.AsyncOpenAI) -> None:
    whole = await respond(client, max_output_tokens=2)
    assert whole.status == "incomplete" and whole.incomplete_details is not None
    assert whole.incomplete_details.reason == "max_output_tokens" and whole.output_text == "a red "


async def test_events_are_those_of_the_openai_client(client: openai.AsyncOpenAI) -> None:
    events = [event async for event in await client.responses.create(model=LLAVA, input=QUESTION, stream=True)]
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *("output_text.delta",) * 3,
        *("output_text.done", "content_part.done", "output_item.done", "completed"),
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == TEXT
    last = events[-1]
    assert last.type == "response.completed" and last.response.output_text == TEXT
    assert last.response.usage is not None and last.response.usage.output_tokens == 3


@pytest.mark.slow
@pytest.mark.parametrize(("model", "text"), [(LLAVA, TEXT), ("vqa", TEXT), ("vqa:*", TEXT)])
async def test_stream_helper_collects_the_response(client: openai.AsyncOpenAI, model: str, text: str) -> None:
    async with client.responses.stream(model=model, input=QUESTION) as stream:
        async for _ in stream:
            pass
        assert (await stream.get_final_response()).output_text == text


async def test_text_is_parsed_by_the_client(client: openai.AsyncOpenAI) -> None:
    parsed = await client.responses.parse(model=LLAVA, input=QUESTION, text_format=Seen)
    assert parsed.output_parsed == Seen(colour="red")
    async with client.responses.stream(model=LLAVA, input=QUESTION, text_format=Seen) as stream:
        assert (await stream.get_final_response()).output_parsed == Seen(colour="red")


@pytest.mark.parametrize("stream", [False, True])
async def test_output_of_a_fan_out_is_the_merged_reply(client: openai.AsyncOpenAI, stream: bool) -> None:
    async def about(model: str) -> tuple[str, dict[str, Any]]:
        if not stream:
            whole = await respond(client, model)
        else:
            events = [event async for event in await client.responses.create(model=model, input=QUESTION, stream=True)]
            whole = events[-1].response  # type: ignore[union-attr]
        return whole.output_text, (whole.model_extra or {})["diptych"]

    text, merged = await about("vqa")
    assert text == TEXT and merged["method"] == "vote" and "replies" not in merged
    text, merged = await about("vqa:*")
    replies = {each["model"]: each["text"] for each in merged["replies"] if each["status"] == "ok"}
    assert text == TEXT and replies == {LLAVA: TEXT, REAL: TEXT, PALIGEMMA: OTHER}


async def test_history_and_instructions_become_the_conversation(client: openai.AsyncOpenAI) -> None:
    first = await respond(client, REAL)
    history = [*QUESTION, *first.output, {"type": "reasoning", "id": "rs_1", "summary": []}]
    call = {"type": "function_call", "call_id": "call_1", "name": "look_up", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "call_1", "output": "2 EUR"}
    later = [*history, call, result, {"role": "user", "content": "sure?"}]
    await respond(client, REAL, input=later, instructions="Be short.")
    text = LLAVA_ENGINE.prompts[-1].text
    assert text.startswith("Be short.") and "Result of look_up: 2 EUR\nsure?" in text and f"ASSISTANT: {TEXT}" in text
    await respond(client, REAL, input="what is red?")
    assert "what is red?" in LLAVA_ENGINE.prompts[-1].text and LLAVA_ENGINE.prompts[-1].image is None


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "unsupported_parameter"),
        ({"conversation": "conv_1"}, "conversation", "unsupported_parameter"),
        ({"background": True}, "background", "unsupported_parameter"),
        ({"truncation": "auto"}, "truncation", "unsupported_parameter"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "invalid_value"),
        ({"tools": [{"type": "function", "name": "f"}]}, "tools", "unsupported_parameter"),
        ({"max_output_tokens": 0}, "max_output_tokens", "invalid_value"),
        ({"extra_body": {"messages": []}}, "messages", "unknown_parameter"),
        ({"extra_body": {"logprobs": True}}, "logprobs", "unknown_parameter"),
        ({"extra_body": {"quorum": 2}}, "quorum", "invalid_value"),
        ({"input": []}, "input", "invalid_value"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]", "invalid_value"),
        ({"tool_choice": {"type": "allowed_tools", "tools": []}}, "tool_choice.name", None),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input", "invalid_value"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "file-1"}]}]},
            "input[0].content[0].file_id",
            "unsupported_parameter",
        ),
        (
            {"input": [{"role": "user", "content": [{**IMAGE, "image_url": "http://x.org/a.png"}]}]},
            "input[0].content[0].image_url",
            "invalid_image_url",
        ),
        ({"input": [{"role": "assistant", "content": [IMAGE]}, *QUESTION]}, "input[0].content[0]", "invalid_value"),
        ({"input": "   ", "model": REAL}, "input", "missing_text"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": REMOTE}}}, "text.format.schema", None),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort", "unsupported_parameter"),
        ({"model": "vqa", "input": "what?"}, "input", "missing_image"),
        ({"model": "vqa", "max_output_tokens": 9000}, "max_output_tokens", "invalid_value"),
    ],
)  # fmt: skip
async def test_wrong_request_is_refused_by_its_own_field(
    client: openai.AsyncOpenAI, fields: dict[str, Any], param: str, code: str | None
) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            await respond(client, **{"stream": stream, **fields})
        assert caught.value.param == param and code in (None, caught.value.code), caught.value


async def test_unknown_model_is_refused(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await respond(client, "nobody")
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")


async def test_failure_after_the_first_event_raises_in_the_client() -> None:
    async with calling(served(FakeEngine("a b c", fail_after=2))) as http:
        failing = openai.AsyncOpenAI(base_url="http://diptych/v1", api_key="none", http_client=http)
        with pytest.raises(openai.APIError) as caught:
            _ = [event async for event in await failing.responses.create(model=LLAVA, input=QUESTION, stream=True)]
        assert caught.value.code == "model_error"


async def test_events_have_their_type_as_their_name() -> None:
    async with calling(APP) as http:
        body = {"model": "vqa", "input": QUESTION, "stream": True}
        events = frames((await http.post("/v1/responses", json=body)).text)
    assert events[-1] == (None, "[DONE]")
    assert all(json.loads(data)["type"] == name for name, data in events[:-1])


def test_text_after_a_call_is_an_item_of_its_own() -> None:
    head = ResponseHead("abc", REAL, request=ResponseRequest(model=REAL, input="time?"))
    events = ResponseEvents(head, Usage)
    written = events.open([{}])
    for step in ("I look.", 0, "\n", 1, "\n", "Done", "."):
        if isinstance(step, str):
            written += events.text(0, step)
        else:
            written += events.tool_calls(0, [ToolCallPart(step, "{}", f"call_{step}", "clock")])
    written += events.finish(0, "stop") + events.last()
    bodies = [json.loads(data) for _, data in frames(written.decode())]
    output = bodies[-1]["response"]["output"]
    assert [item["type"] for item in output] == ["message", "function_call", "function_call", "message"]
    assert [output[at]["content"][0]["text"] for at in (0, 3)] == ["I look.", "\nDone."]
    assert (output[0]["id"], output[3]["id"]) == ("msg_abc", "msg_abc_1")
    deltas = [(body["item_id"], body["delta"]) for body in bodies if body["type"] == "response.output_text.delta"]
    assert deltas == [("msg_abc", "I look."), ("msg_abc_1", "\nDone"), ("msg_abc_1", ".")]
