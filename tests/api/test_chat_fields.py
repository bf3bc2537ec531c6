"""Fields of chat completions that are ignored or refused, of one model and of a task."""

from typing import Any

import pytest
from chat_client import body, complete, refused
from served import LLAVA


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
