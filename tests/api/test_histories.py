"""Chat histories as client libraries send them: their message objects, tool calls, several images."""

import base64
import functools
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from openai.types.chat import ChatCompletionMessage, ParsedChatCompletionMessage
from served import LLAVA, PALIGEMMA, calling, message, picture, router

from serve.api.app import create_app
from serve.engines.fake import FakeEngine
from serve.models import MODELS
from serve.worker import Worker

REAL = "llava-1.5-7b"
USER = {"role": "user", "content": "sure?"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": '{"thing": "bread"}'}}
TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}]


@functools.cache
def serving() -> tuple[FastAPI, dict[str, FakeEngine]]:
    """Return a shared app that serves a published LLaVA and the toys, and its engines by model."""
    engines = {name: FakeEngine("red") for name in (LLAVA, PALIGEMMA, REAL)}
    app_router = router(engines[LLAVA], engines[PALIGEMMA])
    app_router.routes[REAL] = worker = Worker(MODELS[REAL], engines[REAL])
    worker.mark("ready", "ready")
    return create_app(app_router), engines


async def ask(model: str, messages: list[Any], **more: Any) -> tuple[httpx.Response, FakeEngine]:
    """Return the response and the engine of the called model."""
    app, engines = serving()
    for engine in engines.values():
        engine.prompts.clear()
    async with calling(app) as client:
        given = {"model": model, "messages": messages, **more}
        reply = await client.post("/v1/chat/completions", json=given)
    name = model.partition(":")[2] or model
    return reply, engines.get(name, engines[PALIGEMMA])


def message_with_image(text: str, side: int) -> dict[str, Any]:
    """Return a message with a square image. side: in pixels, to identify the image."""
    url = "data:image/png;base64," + base64.b64encode(picture(side, side)).decode()
    return message(text, url)


ASSISTANT_MESSAGE = ChatCompletionMessage(role="assistant", content="red")
ASSISTANT_MESSAGES = [
    ASSISTANT_MESSAGE.model_dump(),
    ASSISTANT_MESSAGE.model_dump() | {"annotations": [{"type": "url_citation", "url_citation": {"url": "x"}}]},
    ParsedChatCompletionMessage[Any](role="assistant", content="red", parsed={"a": 1}).model_dump(),
    {"role": "assistant", "content": [{"type": "text", "text": "red", "cache_control": {"type": "ephemeral"}}]},
    {"role": "assistant", "content": None, "refusal": "red"},
    {"role": "assistant", "content": [{"type": "refusal", "refusal": "red"}]},
    {"role": "assistant", "content": "red", "reasoning_content": "It looks red.", "tool_calls": None},
    {"role": "assistant", "content": "red", "reasoning": None, "reasoning_details": [{"type": "x"}]},
    {"role": "assistant", "content": "red", "provider_specific_fields": {"a": 1}, "thinking_blocks": [], "images": []},
    {"role": "assistant", "content": "red", "function_call": None, "audio": None, "name": "bot", "tool_calls": []},
    {"role": "assistant", "content": "red", "tool_calls": [CALL]},
]


@pytest.mark.parametrize("previous", ASSISTANT_MESSAGES, ids=range(len(ASSISTANT_MESSAGES)))
async def test_assistant_message_of_any_client_is_read_as_text(previous: dict[str, Any]) -> None:
    reply, engine = await ask(REAL, [message("what?"), previous, USER])
    assert reply.status_code == 200, reply.text
    assert engine.prompts[0].text == "USER: <image>\nwhat? ASSISTANT: red</s>USER: sure? ASSISTANT:"
    for model in (f"vqa:{PALIGEMMA}", "caption"):
        reply, engine = await ask(model, [message("what?"), previous, USER])
        assert reply.status_code == 200, reply.text
    assert engine.prompts[0].image is not None


@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}, {"content": []}])
async def test_assistant_message_without_text_is_no_turn(content: dict[str, Any]) -> None:
    reply, engine = await ask(REAL, [message("what?"), {"role": "assistant", **content}, USER])
    assert reply.status_code == 200, reply.text
    assert engine.prompts[0].text == "USER: <image>\nwhat?\nsure? ASSISTANT:"


@pytest.mark.parametrize(
    ("call", "result", "name"),
    [
        ({"tool_calls": [CALL]}, {"role": "tool", "tool_call_id": "call_1"}, "look_up"),
        ({"tool_calls": [CALL], "refusal": None}, {"role": "tool", "tool_call_id": "other", "name": None}, "a tool"),
        ({"function_call": {"name": "f", "arguments": "{}"}}, {"role": "function", "name": "look_up"}, "look_up"),
        ({"tool_calls": [{"id": 7, "function": "x"}, {"id": "call_1"}]}, {"role": "tool"}, "a tool"),
    ],
)
async def test_tool_result_is_read_as_text(call: dict[str, Any], result: dict[str, Any], name: str) -> None:
    tool_call = {"role": "assistant", "content": None, **call}
    for content in ("2 EUR", [{"type": "text", "text": "2 EUR"}]):
        history = [message("what does it cost?"), tool_call, {**result, "content": content}]
        for model in (REAL, LLAVA):
            reply, engine = await ask(model, history, tools=TOOLS, tool_choice="none")
            assert reply.status_code == 200, reply.text
            question = f"what does it cost?\nResult of {name}: 2 EUR"
            assert engine.prompts[0].text == f"USER: <image>\n{question} ASSISTANT:"
        reply, engine = await ask(f"vqa:{PALIGEMMA}", history)
        assert reply.status_code == 200 and engine.prompts[0].text == "answer en what does it cost?"


@pytest.mark.parametrize("model", [REAL, LLAVA, PALIGEMMA, "vqa", "vqa:*"])
async def test_tools_are_accepted_only_with_tool_choice_none(model: str) -> None:
    for more in (
        {"tools": TOOLS, "tool_choice": "none"},
        {"tool_choice": "none", "tools": TOOLS * 100, "parallel_tool_calls": False},
        {"functions": [{"name": "f"}], "function_call": "none"},
        {"tools": [], "tool_choice": "auto"},
        {"store": True, "metadata": {"a": "b"}},
    ):
        reply, _ = await ask(model, [message("what?")], **more)
        assert reply.status_code == 200, reply.text
    for more, param in (
        ({"tools": TOOLS}, "tools"),
        ({"tools": TOOLS, "tool_choice": "auto"}, "tools"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": "none", "tool_choice": "none"}, "tools"),
    ):
        reply, _ = await ask(model, [message("what?")], **more)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


ANSWERED = {"role": "assistant", "content": "red"}


@pytest.mark.parametrize(
    ("messages", "side"),
    [
        ([message_with_image("a?", 20), ANSWERED, message_with_image("b?", 30)], 30),
        ([message_with_image("a?", 20), ANSWERED, message_with_image("b?", 30), ANSWERED, USER], 30),
        (
            [
                message_with_image("a?", 20),
                ANSWERED,
                message_with_image("b?", 30),
                ANSWERED,
                message_with_image("c?", 40),
            ],
            40,
        ),
        (
            [message("a?", "data:image/png;base64,broken"), ANSWERED, message_with_image("b?", 30)],
            30,
        ),  # not decoded, since it is not the last
        ([message_with_image("a?", 20), {"role": "assistant", "content": None}, message_with_image("b?", 30)], 30),
        (
            [
                message_with_image("a?", 20),
                message("a b?", None),
                ANSWERED,
                message("c", None),
                message_with_image("b?", 30),
            ],
            30,
        ),
    ],
)
async def test_last_image_is_used(messages: list[Any], side: int) -> None:
    for model in (REAL, f"chat:{LLAVA}", f"vqa:{PALIGEMMA}"):
        reply, engine = await ask(model, messages)
        assert reply.status_code == 200, reply.text
        (prompt,) = engine.prompts
        assert prompt.image is not None and prompt.image.width == side
        assert prompt.text.count("<image>") == (0 if PALIGEMMA in model else 1)


async def test_image_placeholder_is_in_the_turn_of_the_image() -> None:
    _, engine = await ask(REAL, [message_with_image("a?", 20), ANSWERED, message_with_image("b?", 30), ANSWERED, USER])
    text = "USER: a? ASSISTANT: red</s>USER: <image>\nb? ASSISTANT: red</s>USER: sure? ASSISTANT:"
    assert engine.prompts[0].text == text


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([message_with_image("a?", 20), message_with_image("b?", 30)], "messages[1].content[0]"),
        ([USER, ANSWERED, message_with_image("a?", 20), USER, message_with_image("b?", 30)], "messages[4].content[0]"),
        ([message_with_image("a?", 20), message_with_image("b?", 30), ANSWERED, USER], "messages[1].content[0]"),
        ([{"role": "user", "content": message_with_image("a", 9)["content"] * 2}], "messages[0].content[2]"),
    ],
)
@pytest.mark.parametrize("model", [REAL, "vqa", "caption:*"])
async def test_two_images_in_a_question_are_refused(model: str, messages: list[Any], param: str) -> None:
    reply, _ = await ask(model, messages)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


BRIEF = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("before", "head"),
    [
        ([BRIEF], "Be brief."),
        ([{"role": "developer", "content": [{"type": "text", "text": "Be brief."}]}], "Be brief."),
        ([BRIEF, {"role": "system", "content": "Be kind."}], "Be brief.\nBe kind."),
    ],
)
@pytest.mark.parametrize("model", [REAL, LLAVA])
async def test_system_message_is_accepted_by_llava_and_refused_by_paligemma(
    model: str, before: list[Any], head: str
) -> None:
    reply, engine = await ask(model, [*before, message("what?")])
    assert reply.status_code == 200, reply.text
    assert engine.prompts[0].text == f"{head} USER: <image>\nwhat? ASSISTANT:"
    reply, _ = await ask(PALIGEMMA, [*before, message("caption en")])
    assert reply.status_code == 400 and "system" in reply.json()["error"]["message"]
    reply, _ = await ask(f"vqa:{PALIGEMMA}", [*before, message("what?")])
    assert reply.status_code == 200  # a task ignores the system message


EMPTY = dict.fromkeys(("name", "tool_calls", "tool_call_id", "function_call", "audio", "refusal", "reasoning_content"))


@pytest.mark.parametrize("role", ["user", "system", "tool", "assistant"])
async def test_null_fields_of_other_roles_are_accepted(role: str) -> None:
    own = {"role": role, "content": [{"type": "text", "text": "x"}], **EMPTY}
    reply, _ = await ask(REAL, [own, message("what?") | EMPTY])
    assert reply.status_code == 200, reply.text


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"role": "tool", "content": None}, "messages[0].content"),
        ({"role": "tool", "content": message_with_image("a", 9)["content"]}, "messages[0].content[0]"),
        ({"role": "assistant", "content": "x", "audio": {"id": "a"}}, "messages[0].audio"),
        ({"role": "assistant", "content": 7}, "messages[0].content"),
        ({"role": "assistant", "content": None, "tool_calls": "x"}, "messages[0].tool_calls"),
        ({"role": "assistant", "tool_calls": [{}] * 129}, "messages[0].tool_calls"),
        ({"role": "user", "content": [{"type": "text", "text": "x"}] * 65}, "messages[0].content"),
        ({"role": "robot", "content": "x"}, "messages[0].role"),
        ({"role": ["user"], "content": "x"}, "messages[0].role"),
        ({"content": "x"}, "messages[0].role"),
        ({"role": "user", "content": "x", "reasoning_content": "y"}, "messages[0].reasoning_content"),
        ({"role": "system", "content": "x", "tool_call_id": "y"}, "messages[0].tool_call_id"),
        ({"role": "user", "content": [{"type": "file", "file": {}}]}, "messages[0].content[0]"),
    ],
)
@pytest.mark.parametrize("model", [REAL, "vqa"])
async def test_invalid_message_of_a_history_is_named_by_its_path(model: str, wrong: dict[str, Any], param: str) -> None:
    reply, _ = await ask(model, [wrong, message("what?")])
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), reply.text


@pytest.mark.parametrize("blank", ["", " \n", "\u200b\u00a0", []])
async def test_blank_question_is_refused(blank: Any) -> None:
    reply, _ = await ask(REAL, [{"role": "user", "content": blank}])
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "missing_text")
    reply, _ = await ask("vqa", [message("what?"), ANSWERED, {"role": "user", "content": blank}])
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "messages[2].content")


@pytest.mark.parametrize("part", [{"type": "text", "text": ""}, {}, {"type": "image_url"}, 7])
async def test_too_many_content_parts_are_refused(part: Any) -> None:
    reply, _ = await ask("vqa", [*[{"role": "user", "content": [part] * 64}] * 17, message("what?")])
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, "messages") and "1,024" in error["message"]
    texts = [{"role": "user", "content": [{"type": "text", "text": ""}] * 63}] * 16
    reply, _ = await ask("vqa", [*texts, message("what?")])
    assert reply.status_code == 200, reply.text


@pytest.mark.parametrize("name", ["llava-v1.6-34b", "llava-onevision-qwen2-7b-ov", "llava-v1.6-mistral-7b", REAL])
async def test_stop_strings_of_the_family_are_added_to_every_request(name: str) -> None:
    engine = FakeEngine("red")
    app_router = router()
    app_router.routes[name] = worker = Worker(MODELS[name], engine)
    worker.mark("ready", "ready")
    own = MODELS[name].ends
    async with calling(create_app(app_router)) as client:
        for model in (name, f"vqa:{name}"):
            for more, ends in (
                ({}, own),
                ({"stop": "x"}, ("x", *own)),
                ({"stop": ["x", "y"]}, ("x", "y", *own)),
                ({"ignore_eos": True}, ()),  # the family's stop strings are ignored, too
                ({"ignore_eos": True, "stop": "x"}, ("x",)),
            ):
                given = {"model": model, "messages": [message("what?")], **more}
                reply = await client.post("/v1/chat/completions", json=given)
                assert reply.status_code == 200, reply.text
                assert engine.prompts[-1].sampling.stop == ends
