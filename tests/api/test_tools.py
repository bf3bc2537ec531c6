"""Calls of functions: whole and streamed, in chat completions and in responses, held to one, refused by name."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import openai
import pytest
from served import LLAVA, URL, calling, message, router

from serve.api.app import create_app
from serve.api.chat_completions.tools import CallReader
from serve.engines.base import Piece, Prompt, ToolCallPart, ToolReader, Tools
from serve.engines.fake import FakeEngine
from serve.engines.remote.chat_request import IMAGE_PART
from serve.models import MODELS
from serve.worker import Worker

MODEL = "qwen3-vl-2b"
WEATHER = {
    "name": "weather",
    "description": "The weather of a place.",
    "parameters": {"type": "object", "properties": {"place": {"$ref": "#/$defs/Place"}}, "required": ["place"],
                   "$defs": {"Place": {"type": "string", "enum": ["Oslo", "Rome"]}}},
}  # fmt: skip
CLOCK = {"name": "clock", "parameters": {"type": "object", "properties": {}}}
TOOLS: list[Any] = [{"type": "function", "function": function} for function in (WEATHER, CLOCK)]
FLAT: list[Any] = [{"type": "function", **function} for function in (WEATHER, CLOCK)]
QUESTION: Any = [message("how is the weather here?")]
INPUT: Any = [{"role": "user", "content": [{"type": "input_image", "image_url": URL},
                                           {"type": "input_text", "text": "the weather?"}]}]  # fmt: skip
NAMED: Any = {"type": "function", "function": {"name": "weather"}}


NESTED = json.loads('{"a":' * 40 + "1" + "}" * 40)


def with_parameters(parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": parameters}}


class Marked:
    """A reader of calls `@name`, each with the arguments {"place": "Oslo"} in two parts, and of `+text`, which has the
    second part and a text after it."""

    def feed(self, piece: Piece) -> Piece:
        if piece.text.startswith("+"):
            return replace(piece, text=piece.text[1:], tool_calls=(ToolCallPart(0, '"Oslo"}'),))
        if not piece.text.startswith("@"):
            return piece
        name, index = piece.text[1:].strip(), int(piece.text.startswith("@clock"))
        parts = ToolCallPart(index, '{"place": ', f"call_{index}", name), ToolCallPart(index, '"Oslo"}')
        return replace(piece, text="", tool_calls=parts[:1] if "..." in name else parts)


class CallingEngine(FakeEngine):
    """An engine whose reply has calls."""

    def tool_reader(self, tools: Tools, whole: bool) -> ToolReader:
        return Marked()


def reply(prompt: Prompt) -> Any:
    schema = json.loads(prompt.sampling.json_schema or "{}")
    if schema.get("type") == "array":
        return ['[{"name": "clock", ', '"parameters": {}}]']
    if schema:
        return ['{"place": ', '"Rome"}']
    if "joined" in prompt.text:
        return ["@weather...", "+Done."]
    return ["I ", "look: ", "@weather", "@clock "] if prompt.tools else "sunny"


ENGINE = CallingEngine(reply)


@pytest.fixture
async def client() -> AsyncIterator[openai.AsyncOpenAI]:
    ENGINE.prompts.clear()
    app_router = router()
    app_router.routes[MODEL] = worker = Worker(MODELS[MODEL], ENGINE)
    worker.mark("ready", "ready")
    async with calling(create_app(app_router)) as http:
        base = "http://diptych/v1"
        yield openai.AsyncOpenAI(base_url=base, api_key="none", max_retries=0, http_client=http)


async def complete(client: openai.AsyncOpenAI, stream: bool, **fields: Any) -> Any:
    """Return the choice, of a stream as openai's helper collects it."""
    given = {"model": MODEL, "messages": QUESTION, "tools": TOOLS, **fields}
    if not stream:
        return (await client.chat.completions.create(**given)).choices[0]
    async with client.chat.completions.stream(**given) as events:
        return (await events.get_final_completion()).choices[0]


def calls(choice: Any) -> list[tuple[str, str]]:
    return [(call.function.name, call.function.arguments) for call in choice.message.tool_calls]


@pytest.mark.parametrize("stream", [False, True])
async def test_model_calls_functions(client: openai.AsyncOpenAI, stream: bool) -> None:
    choice = await complete(client, stream)
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "I look: ")
    assert calls(choice) == [("weather", '{"place": "Oslo"}'), ("clock", '{"place": "Oslo"}')]
    assert [call.id for call in choice.message.tool_calls] == ["call_0", "call_1"]
    prompt = ENGINE.prompts[-1]
    assert prompt.tools is not None and prompt.tools.parser == "hermes" and json.loads(prompt.tools.schemas) == TOOLS
    assert "<tool_call>" in prompt.sampling.marks
    choice = await complete(client, stream, parallel_tool_calls=False)
    assert [name for name, _ in calls(choice)] == ["weather"]
    choice = await complete(client, stream, tool_choice="none")
    assert (choice.finish_reason, choice.message.content, choice.message.tool_calls) == ("stop", "sunny", None)


@pytest.mark.parametrize("stream", [False, True])
async def test_reply_is_held_to_a_call(client: openai.AsyncOpenAI, stream: bool) -> None:
    choice = await complete(client, stream, tool_choice=NAMED)
    assert choice.finish_reason == "stop" and calls(choice) == [("weather", '{"place": "Rome"}')]
    assert json.loads(ENGINE.prompts[-1].sampling.json_schema or "") == WEATHER["parameters"]
    choice = await complete(client, stream, tool_choice="required")
    assert choice.finish_reason == "tool_calls" and calls(choice) == [("clock", "{}")]
    schema = json.loads(ENGINE.prompts[-1].sampling.json_schema or "")
    weather = schema["$defs"]["0"]
    assert weather["properties"] == {"place": {"$ref": "#/$defs/0/$defs/Place"}}
    assert weather["$defs"] == {"Place": {"type": "string", "enum": ["Oslo", "Rome"]}}
    assert choice.message.tool_calls[0].id.startswith("call_") and not choice.message.content
    choice = await complete(client, stream, tool_choice=NAMED, response_format={"type": "json_object"})
    assert calls(choice) == [("weather", '{"place": "Rome"}')]  # a call has no format beside it
    await complete(client, stream, tool_choice="required", parallel_tool_calls=False)
    assert json.loads(ENGINE.prompts[-1].sampling.json_schema or "")["maxItems"] == 1


@pytest.mark.parametrize(
    "text",
    [
        "[",
        '[{"name": "f", "parameters": {"c": ' + 10_000 * '[{"c": ',
        '[{"name": "f", "parameters": {"c": "\\ud83d"}}]',
    ],
)
def test_calls_that_no_json_can_hold_are_none(text: str) -> None:
    assert CallReader(None).feed(Piece(text, finish_reason="length")).tool_calls == ()


async def test_functions_schema_may_refer_to_any_part_of_itself(client: openai.AsyncOpenAI) -> None:
    properties = {"a": {"$ref": "#/properties/b"}, "b": {"type": "string"}, "c": {"items": [{"$ref": "#"}]}}
    function = {"name": "clock", "parameters": {"type": "object", "properties": properties, "$defs": 5}}
    await complete(client, False, tools=[{"type": "function", "function": function}], tool_choice="required")
    schema = json.loads(ENGINE.prompts[-1].sampling.json_schema or "")
    assert schema["items"]["anyOf"][0]["properties"]["parameters"] == {"$ref": "#/$defs/0"}
    moved = schema["$defs"]["0"]["properties"]
    assert moved["a"] == {"$ref": "#/$defs/0/properties/b"} and moved["c"] == {"items": [{"$ref": "#/$defs/0"}]}


async def test_calls_and_results_are_in_the_conversation(client: openai.AsyncOpenAI) -> None:
    choice = await complete(client, False)
    results = [{"role": "tool", "tool_call_id": call.id, "content": "2 C"} for call in choice.message.tool_calls]
    await complete(client, False, messages=[*QUESTION, choice.message, *results])
    messages = json.loads(ENGINE.prompts[-1].text)
    assert [each["role"] for each in messages] == ["user", "assistant", "tool", "tool"]
    assert [call["function"]["name"] for call in messages[1]["tool_calls"]] == ["weather", "clock"]
    assert messages[2] == {"role": "tool", "content": "2 C", "tool_call_id": "call_0", "name": "weather"}
    broken = {"id": "a", "type": "function", "function": {"name": "clock", "arguments": "{"}}
    history = [*QUESTION, {"role": "assistant", "tool_calls": [broken]}, {"role": "tool", "content": "1"}]
    await complete(client, False, messages=history)
    assert json.loads(ENGINE.prompts[-1].text)[1]["tool_calls"][0]["function"]["arguments"] == "{}"
    broken["function"]["arguments"] = '{"a":' * 40 + "1" + "}" * 40
    await complete(client, False, messages=history)
    assert json.loads(ENGINE.prompts[-1].text)[1]["tool_calls"][0]["function"]["arguments"] == "{}"


async def test_consecutive_messages_of_one_role_are_joined_but_for_results(client: openai.AsyncOpenAI) -> None:
    call = {"id": "a", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
    history: Any = [
        {"role": "developer", "content": "Be brief."},
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "hello"},
        message("how late is it?"),
        {"role": "assistant", "content": "Let me see."},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": "1"},
        {"role": "tool", "tool_call_id": "a", "content": "2"},
        {"role": "assistant", "content": "It is two."},
        {"role": "user", "content": ""},
        {"role": "user", "content": "sure?"},
    ]
    await complete(client, False, messages=history)
    messages = json.loads(ENGINE.prompts[-1].text)
    roles = ["system", "user", "assistant", "tool", "tool", "assistant", "user"]
    assert [each["role"] for each in messages] == roles
    assert messages[0]["content"] == "Be brief.\nBe kind." and messages[-1]["content"] == "sure?"
    assert messages[1]["content"] == [IMAGE_PART, {"type": "text", "text": "hello\nhow late is it?"}]
    assert messages[2] == {"role": "assistant", "content": "Let me see.", "tool_calls": [call]}


@pytest.mark.parametrize("stream", [False, True])
async def test_calls_are_items_of_a_response(client: openai.AsyncOpenAI, stream: bool) -> None:
    async def respond(**fields: Any) -> Any:
        given = {"model": MODEL, "input": INPUT, "tools": FLAT, **fields}
        if not stream:
            return await client.responses.create(**given)
        async with client.responses.stream(**given) as events:
            return await events.get_final_response()

    whole = await respond()
    assert [item.type for item in whole.output] == ["message", "function_call", "function_call"]
    assert whole.output_text == "I look: " and whole.tools[0].name == "weather"
    assert [(item.name, item.arguments) for item in whole.output[1:]] == [
        ("weather", '{"place": "Oslo"}'),
        ("clock", '{"place": "Oslo"}'),
    ]
    whole = await respond(tool_choice={"type": "function", "name": "weather"})
    assert [(item.type, item.arguments) for item in whole.output] == [("function_call", '{"place": "Rome"}')]
    both = {"format": {"type": "json_schema", "name": "weather", "schema": WEATHER["parameters"]}}
    again = await respond(tool_choice={"type": "function", "name": "weather"}, text=both)  # as instructor sends it
    assert [(item.type, item.arguments) for item in again.output] == [("function_call", '{"place": "Rome"}')]
    results = [{"type": "function_call_output", "call_id": whole.output[0].call_id, "output": "sun"}]
    history = [{"type": "function_call", "call_id": whole.output[0].call_id, "name": "weather", "arguments": "{}"}]
    await respond(input=[*INPUT, *history, *results])
    assert [each["role"] for each in json.loads(ENGINE.prompts[-1].text)] == ["user", "assistant", "tool"]


async def test_call_is_whole_where_its_end_and_later_text_come_joined(client: openai.AsyncOpenAI) -> None:
    async with client.responses.stream(model=MODEL, input="joined", tools=FLAT) as events:
        call, text = (await events.get_final_response()).output
    assert (call.type, text.type) == ("function_call", "message")
    assert call.type == "function_call" and json.loads(call.arguments) == {"place": "Oslo"}
    choice = await complete(client, True, messages=[{"role": "user", "content": "joined"}])
    assert choice.message.content == "Done." and [arguments for _, arguments in calls(choice)] == ['{"place": "Oslo"}']


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice.function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "code_interpreter"}]}, "tools[0].type"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools"),
        ({"tools": [TOOLS[0]] * 129}, "tools"),
        ({"tool_choice": "always"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logprobs": True}, "logprobs"),
        (
            {"tool_choice": "required", "tools": [{"type": "function", "function": {
                "name": "f", "parameters": {"type": "object", "properties": {"a": {"pattern": "a+"}}}}}]},
            "tools[0].function.parameters",
        ),
        ({"tools": [with_parameters({"properties": 5})]}, "tools[0].function.parameters"),
        ({"tools": [TOOLS[0], with_parameters({"properties": {"a": [1]}})]}, "tools[1].function.parameters"),
        ({"tools": [with_parameters(NESTED)]}, "tools[0].function.parameters"),
        ({"tools": None, "tool_choice": "required"}, "tool_choice"),
        ({"model": LLAVA}, "tools"),
        ({"model": LLAVA, "tool_choice": "required"}, "tools"),
        ({"model": "vqa"}, "tools"),
        ({"model": "vqa", "tools": None, "tool_choice": "required"}, "tool_choice"),
    ],
)  # fmt: skip
async def test_wrong_tools_are_refused_by_their_field(
    client: openai.AsyncOpenAI, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await complete(client, False, **fields)
    assert caught.value.param == param, caught.value
