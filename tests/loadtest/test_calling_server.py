"""The server that calls functions, as other projects' clients see it."""

import json
from pathlib import Path
from typing import Any

import openai
import pytest
from served import URL, calling, message

from loadtest.calling_server import MODEL, NUMBER, app
from loadtest.clients import function

TOOLS: Any = [{"type": "function", "function": function()}]
CHOICES: list[Any] = ["auto", "required", {"type": "function", "function": {"name": "tell"}}]


@pytest.mark.parametrize("choice", CHOICES, ids=["auto", "required", "named"])
@pytest.mark.parametrize("stream", [False, True])
async def test_function_is_called_with_allowed_arguments(choice: Any, stream: bool, tmp_path: Path) -> None:
    async with calling(app(tmp_path)) as http:
        client = openai.AsyncOpenAI(base_url="http://diptych/v1", api_key="none", http_client=http)
        fields: Any = {"model": MODEL, "messages": [message("how many?")], "tools": TOOLS, "tool_choice": choice}
        if stream:
            async with client.chat.completions.stream(**fields) as events:
                completion: Any = await events.get_final_completion()
        else:
            completion = await client.chat.completions.create(**fields)
    (call,) = completion.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("tell", {"number": NUMBER})


async def test_response_is_held_to_a_schema_or_is_fenced_json(tmp_path: Path) -> None:
    items: Any = [{"role": "user", "content": [{"type": "input_image", "image_url": URL}]}]
    items[0]["content"].append({"type": "input_text", "text": "how many?"})
    schema: Any = {"$defs": {"n": {"type": "integer"}}, "type": "object", "properties": {"a": {"$ref": "#/$defs/n"}},
                   "required": ["a"], "additionalProperties": False}  # fmt: skip
    async with calling(app(tmp_path)) as http:
        client = openai.AsyncOpenAI(base_url="http://diptych/v1", api_key="none", http_client=http)
        held = await client.responses.create(
            model=MODEL, input=items, text={"format": {"type": "json_schema", "name": "s", "schema": schema}}
        )
        free = await client.responses.create(model=MODEL, input=items)
    assert json.loads(held.output_text) == {"a": NUMBER}
    assert free.output_text == f'```json\n{{"number": {NUMBER}}}\n```'
