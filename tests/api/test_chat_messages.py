"""A chat's messages: histories, system texts, images in any place, and what is refused by its path."""

from typing import Any

import httpx
import pytest
from chat_client import PATH, complete, refused
from served import LLAVA, PALIGEMMA, URL, calling, message, router

from serve.api.app import create_app
from serve.engines.fake import FakeEngine
from serve.models import MODELS
from serve.worker import Worker


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
