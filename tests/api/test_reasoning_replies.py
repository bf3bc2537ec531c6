"""Models that reason: what they think is told apart from what they answer, in tasks and in chats."""

import dataclasses
import json
from typing import Any

import httpx
import pytest
from served import LLAVA, PALIGEMMA, URL, calling, frames, message, picture

from serve.api.app import create_app
from serve.engines.fake import FakeEngine
from serve.models import MODELS
from serve.models.reasoning import ROOM, THINK, Reasoning, suffix_switch
from serve.router import Router
from serve.worker import Worker

TASK, CHAT = "/v1/tasks/vqa", "/v1/chat/completions"
LENGTH = 32
"""Tokens of LLaVA's answers to questions."""
THOUGHT = ["<th", "ink>Maybe blue", ", or", " green.</", "think>\n\n", "red"]
REASONING = Reasoning((THINK,), switchable=True, switch=suffix_switch("<think>\n", "<think>\n\n</think>\n\n"))


async def ask(
    path: str, body: dict[str, Any], replies: Any = THOUGHT, reasoning: Reasoning = REASONING
) -> tuple[httpx.Response, FakeEngine]:
    """Ask toy-llava, which reasons here, and toy-paligemma, which does not. Return the response and LLaVA's engine."""
    engine = FakeEngine(replies)
    model = dataclasses.replace(MODELS[LLAVA], reasoning=reasoning)
    workers = [Worker(model, engine), Worker(MODELS[PALIGEMMA], FakeEngine("red"))]
    for worker in workers:
        worker.mark("ready", "ready")
    async with calling(create_app(Router(workers))) as client:
        return await client.post(path, json=body), engine


def task(**more: Any) -> dict[str, Any]:
    return {"image": URL, "question": "what colour?", **more}


def chat(model: str = LLAVA, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [message()], **more}


async def test_task_merges_the_answer_and_not_the_reasoning() -> None:
    reply, engine = await ask(TASK, task())
    answer = reply.json()
    llava, paligemma = answer["replies"]
    assert (llava["text"], llava["reasoning"]) == ("red", "Maybe blue, or green.")
    assert paligemma["reasoning"] is None
    assert answer["merged"]["result"] == {"answer": "red"} and answer["merged"]["agreement"] == 1
    assert "blue" not in json.dumps(answer["merged"])
    assert llava["usage"]["completion_tokens"] == len(THOUGHT)
    assert engine.prompts[-1].text.endswith("ASSISTANT:")  # nothing is switched unless somebody says so


async def test_task_stream_has_reasoning_apart_from_text() -> None:
    reply, _ = await ask(TASK, task(stream=True, models=[LLAVA]))
    events = [(event, json.loads(data)) for event, data in frames(reply.text) if event]
    deltas = [data for event, data in events if event == "delta"]
    assert "".join(delta.get("reasoning", "") for delta in deltas) == "Maybe blue, or green."
    assert "".join(delta["text"] for delta in deltas) == "red"
    assert {event: data for event, data in events}["reply"]["reasoning"] == "Maybe blue, or green."


@pytest.mark.parametrize("model", [LLAVA, f"vqa:{LLAVA}"])
@pytest.mark.parametrize("stream", [False, True])
async def test_chat_has_the_field_reasoning(model: str, stream: bool) -> None:
    reply, _ = await ask(CHAT, chat(model, stream=stream))
    assert reply.status_code == 200, reply.text
    at = 0 if model == LLAVA else 1
    if stream:
        choices = [json.loads(data)["choices"] for _, data in frames(reply.text)[:-1]]
        deltas = [choice["delta"] for (choice,) in choices if choice["index"] == at]
        written = {name: "".join(delta.get(name, "") for delta in deltas) for name in ("reasoning", "content")}
    else:
        written = reply.json()["choices"][at]["message"]
    assert (written["reasoning"], written["content"]) == ("Maybe blue, or green.", "red")


async def test_log_probabilities_are_those_of_the_answer() -> None:
    reply, _ = await ask(CHAT, chat(logprobs=True))
    assert [token["token"] for token in reply.json()["choices"][0]["logprobs"]["content"]] == ["red"]


@pytest.mark.parametrize("wish", [{"reasoning_effort": "none"}, {"chat_template_kwargs": {"enable_thinking": False}}])
@pytest.mark.parametrize("path", [TASK, CHAT])
async def test_reasoning_is_turned_off(path: str, wish: dict[str, Any]) -> None:
    reply, engine = await ask(path, (task() if path == TASK else chat()) | wish, "red")
    assert reply.status_code == 200, reply.text
    assert engine.prompts[-1].text.endswith("<think>\n\n</think>\n\n")
    assert engine.prompts[-1].sampling.max_tokens == (LENGTH if path == TASK else 512)
    assert '"reasoning":"' not in reply.text


@pytest.mark.parametrize("path", [TASK, CHAT])
async def test_reasoning_is_turned_on_within_a_budget(path: str) -> None:
    wish = {"reasoning_effort": "low", "thinking_token_budget": 7}
    reply, engine = await ask(path, (task() if path == TASK else chat()) | wish, "Hm.</think>red")
    prompt = engine.prompts[-1]
    assert prompt.text.endswith("<think>\n") and prompt.reasoning.effort == "low"
    assert prompt.sampling.thinking_token_budget == 7
    assert prompt.sampling.max_tokens == 7 + (LENGTH if path == TASK else 512)
    assert '"reasoning":"Hm."' in reply.text


async def test_models_own_default_holds_where_a_request_says_nothing() -> None:
    default = dataclasses.replace(REASONING, on=True, budget=9)
    for wish, length, budget in (
        ({}, LENGTH + 9, 9),
        ({"max_tokens": 20}, 20, 9),
        ({"reasoning_effort": "none"}, LENGTH, None),
    ):
        _, engine = await ask(TASK, task(**wish), "Hm.</think>red", default)
        sampling = engine.prompts[-1].sampling
        assert (sampling.max_tokens, sampling.thinking_token_budget) == (length, budget)
    _, engine = await ask(TASK, task(reasoning_effort="high"), "Hm.</think>red", REASONING)
    assert engine.prompts[-1].sampling.max_tokens == LENGTH + ROOM


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, chat(PALIGEMMA, reasoning_effort="high"), "reasoning_effort"),
        (CHAT, chat(PALIGEMMA, thinking_token_budget=5), "thinking_token_budget"),
        (CHAT, chat(PALIGEMMA, chat_template_kwargs={"enable_thinking": True}), "chat_template_kwargs.enable_thinking"),
        (CHAT, chat(f"vqa:{PALIGEMMA}", reasoning_effort="high"), "reasoning_effort"),
        (TASK, task(models=[PALIGEMMA], reasoning_effort="high"), "reasoning_effort"),
        (TASK, task(reasoning_effort="none", chat_template_kwargs={"enable_thinking": True}),
         "chat_template_kwargs.enable_thinking"),
        (TASK, task(thinking_token_budget=-1), "thinking_token_budget"),
        (TASK, task(chat_template_kwargs={"other": 1}), "chat_template_kwargs.other"),
        (CHAT, chat(chat_template_kwargs={"enable_thinking": "yes"}), "chat_template_kwargs.enable_thinking"),
        (CHAT, chat(reasoning_effort="high", response_format={"type": "json_object"}), "response_format"),
    ],
)  # fmt: skip
async def test_wish_that_no_model_can_follow_is_refused_by_name(path: str, body: dict[str, Any], param: str) -> None:
    reply, engine = await ask(path, body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), reply.text
    assert not engine.prompts


async def test_model_that_does_not_reason_answers_beside_one_that_does() -> None:
    reply, _ = await ask(TASK, task(reasoning_effort="high"), "Hm.</think>red")
    assert [each["status"] for each in reply.json()["replies"]] == ["ok", "ok"]


async def test_response_format_turns_reasoning_off() -> None:
    _, engine = await ask(CHAT, chat(response_format={"type": "json_object"}), "{}")
    assert engine.prompts[-1].text.endswith("<think>\n\n</think>\n\n")


@pytest.mark.parametrize("on", [None, True])
async def test_server_that_sees_to_both_gets_a_response_format_and_reasons(on: bool | None) -> None:
    body = chat(response_format={"type": "json_object"}, reasoning_effort="high" if on else None)
    reply, engine = await ask(CHAT, body, reasoning=Reasoning(switchable=bool(on), opened=False, schemas=True))
    assert reply.status_code == 200, reply.text
    prompt = engine.prompts[-1]
    assert prompt.sampling.json_schema == '{"type":"object"}' and prompt.reasoning.on is on


async def test_reply_that_ends_within_its_reasoning_is_an_error_with_that_reasoning() -> None:
    reply, _ = await ask(TASK, task(max_tokens=3))
    llava, paligemma = reply.json()["replies"]
    assert (llava["status"], llava["error"]["code"]) == ("error", "parse_error")
    assert "reasoning" in llava["error"]["message"] and llava["reasoning"] == "Maybe blue, or"
    assert paligemma["status"] == "ok" and llava["text"] == ""
    reply, _ = await ask(CHAT, chat(max_tokens=3))
    choice = reply.json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("", "length")


async def test_form_gives_the_template_arguments_as_json() -> None:
    engine = FakeEngine("red")
    worker = Worker(dataclasses.replace(MODELS[LLAVA], reasoning=REASONING), engine)
    worker.mark("ready", "ready")
    fields = {"question": "x", "chat_template_kwargs": '{"enable_thinking": false}', "thinking_token_budget": "4"}
    async with calling(create_app(Router([worker]))) as client:
        reply = await client.post(TASK, data=fields, files={"image": picture()})
    assert reply.status_code == 200, reply.text
    assert engine.prompts[-1].text.endswith("</think>\n\n")
