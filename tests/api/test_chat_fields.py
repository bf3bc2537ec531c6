"""Fields of chat completions that are ignored or refused, of one model and of a task."""

from typing import Any

import pytest
from chat_client import body, complete, refused
from served import LLAVA

from serve.api.chat_completions.request import ChatCompletionRequest, StreamOptions
from serve.api.chat_completions.task_completion import NEUTRAL, PASSED_ON

READ_BY_TASKS = {"model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "service_tier"}
REFUSED_BY_TASKS = {"response_format", "tools", "tool_choice"}
REFUSED_BY_ALL = {
    "best_of", "echo", "functions", "function_call", "modalities", "audio", "logit_bias", "prediction", "min_p",
    "top_k", "min_tokens", "repetition_penalty", "skip_special_tokens", "use_beam_search", "web_search_options",
    "moderation",
}  # fmt: skip
WITHOUT_EFFECT = {
    "user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options",
    "parallel_tool_calls", "store", "include_reasoning", "verbosity",
}  # fmt: skip


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


def test_each_field_is_passed_on_or_refused_by_a_chat_with_a_task() -> None:
    known = {*PASSED_ON, *NEUTRAL, *READ_BY_TASKS, *REFUSED_BY_TASKS, *REFUSED_BY_ALL, *WITHOUT_EFFECT}
    new = set(ChatCompletionRequest.model_fields) - known
    assert not new, f"{new}: serve/api/CHANGING.md, Add a request field, says what a chat with a task does with it"
    of_streams = set(StreamOptions.model_fields) - {"include_usage", "continuous_usage_stats", "include_obfuscation"}
    assert not of_streams, (
        f"{of_streams}: refuse stream_options.NAME in _refuse_single_model_fields, test that below, then add it here"
    )
    assert known == set(ChatCompletionRequest.model_fields)


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
