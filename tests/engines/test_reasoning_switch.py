"""A chat template's switch for reasoning is found by what the template writes."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from serve.engines.base import ReasoningOptions, Sampling
from serve.engines.chat_settings import ChatSettings
from serve.engines.checkpoint_facts import CheckpointFacts
from serve.engines.reasoning_switch import EFFORT, EFFORTS, ReasoningSwitch, reasoning_switch
from serve.engines.remote.chat_request import IMAGE_PART
from serve.engines.vllm.chat_renderer import ChatRenderer

TURNS = "{% for m in messages %}{{ m.role }}: {% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}"
HYBRID = TURNS + "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
LEVELS = "{% if reasoning_effort not in ['none', 'high'] %}{{ raise_exception('no') }}{% endif %}{{ reasoning_effort }}"
TEMPLATES: dict[str, tuple[str, ReasoningSwitch]] = {
    "closed where off": (HYBRID, ReasoningSwitch("enable_thinking")),
    "opened where on": ("a{% if thinking %}<think>{% endif %}", ReasoningSwitch("thinking")),
    "set to itself": (
        "{% set enable_thinking = enable_thinking | default(true) %}{{ enable_thinking }}",
        ReasoningSwitch("enable_thinking"),
    ),
    "system turn": ("{%- if enable_thinking %}{{ '<|think|>' }}{% endif -%}", ReasoningSwitch("enable_thinking")),
    "another name": (
        "{% if not reasoning %}<|START_THINKING|><|END_THINKING|>{% endif %}",
        ReasoningSwitch("reasoning"),
    ),
    "effort that can be none": (LEVELS, ReasoningSwitch("reasoning_effort", ("high",))),
    "effort that cannot": ("Reasoning: {{ reasoning_effort }}", ReasoningSwitch(None, EFFORTS)),
    "effort beside a switch": (HYBRID + "{{ reasoning_effort }}", ReasoningSwitch("enable_thinking", EFFORTS)),
    "tag of training": ("{% generation %}{{ thinking }}{% endgeneration %}", ReasoningSwitch("thinking")),
    "text without a list": ("{{ messages[0].content + '' }}{{ enable_thinking }}", ReasoningSwitch("enable_thinking")),
    "cannot be written here": ("{{ f() }}{{ enable_thinking }}", ReasoningSwitch("enable_thinking")),
    "the word alone": ("First think, by thinking. {# enable_thinking #}", ReasoningSwitch()),
    "without effect": ("{% if enable_thinking %}{% endif %}", ReasoningSwitch()),
    "broken": ("{% if enable_thinking", ReasoningSwitch()),
    "nested too deep": ("{{" + "(" * 5000 + "enable_thinking", ReasoningSwitch()),
}


@pytest.mark.parametrize(("template", "switch"), TEMPLATES.values(), ids=TEMPLATES)
def test_variable_that_changes_the_prompt_is_the_switch(template: str, switch: ReasoningSwitch) -> None:
    assert reasoning_switch(template) == switch


def test_no_template_has_no_switch() -> None:
    assert reasoning_switch(None) == ReasoningSwitch()


@pytest.mark.parametrize(
    ("switch", "wishes", "values"),
    [
        (ReasoningSwitch("thinking"), ReasoningOptions(), {}),
        (ReasoningSwitch("thinking"), ReasoningOptions("none"), {"thinking": False}),
        (ReasoningSwitch("thinking"), ReasoningOptions("low"), {"thinking": True}),
        (ReasoningSwitch("thinking", ("low",)), ReasoningOptions("low"), {"thinking": True, "reasoning_effort": "low"}),
        (ReasoningSwitch(None, ("low",)), ReasoningOptions("low"), {"reasoning_effort": "low"}),
        (ReasoningSwitch(None, ("low",)), ReasoningOptions("none"), {}),
        (ReasoningSwitch("reasoning_effort", ("high",)), ReasoningOptions("low"), {"reasoning_effort": "high"}),
        (
            ReasoningSwitch(EFFORT, ("low", "max")),
            ReasoningOptions(None, True),
            {"reasoning_effort": "max"},
        ),
        (ReasoningSwitch("reasoning_effort", ("high",)), ReasoningOptions("none"), {"reasoning_effort": "none"}),
        (ReasoningSwitch(), ReasoningOptions("high", True), {}),
    ],
)
def test_wish_becomes_values_of_the_templates_variables(
    switch: ReasoningSwitch, wishes: ReasoningOptions, values: dict[str, Any]
) -> None:
    assert switch.values(wishes) == values


def renderer(template: str, *tokens: str, **template_args: Any) -> ChatRenderer:
    """Return a renderer for a checkpoint with this template, whose tokenizer has special tokens."""
    vllm = SimpleNamespace(
        default_chat_tok_params=SimpleNamespace(with_kwargs=dict),
        tokenizer=SimpleNamespace(all_special_tokens=list(tokens)),
        mm_processor=None,
    )
    return ChatRenderer(vllm, ChatSettings(template_args=template_args), CheckpointFacts(chat_template=template))


@pytest.mark.parametrize(
    ("template", "given", "wishes", "wanted"),
    [
        (HYBRID, {}, ReasoningOptions(), {"enable_thinking": False}),
        (HYBRID, {}, ReasoningOptions("none", False), {"enable_thinking": False}),
        (HYBRID, {}, ReasoningOptions(None, True), {"enable_thinking": True}),
        (HYBRID, {"enable_thinking": True}, ReasoningOptions(), {"enable_thinking": True}),
        (HYBRID, {"enable_thinking": True}, ReasoningOptions(None, False), {"enable_thinking": False}),
        (LEVELS, {}, ReasoningOptions(None, True), {"reasoning_effort": "high"}),
        (LEVELS, {"reasoning_effort": "low"}, ReasoningOptions(None, True), {"reasoning_effort": "low"}),
        (TURNS, {"a": 1}, ReasoningOptions("high", True), {"a": 1}),
    ],
)
def test_template_gets_the_requests_wish_then_the_deployments_then_off(
    template: str, given: dict[str, Any], wishes: ReasoningOptions, wanted: dict[str, Any]
) -> None:
    args = renderer(template, **given).template_args(wishes)
    assert args == {"add_generation_prompt": True, "tokenize": False, **wanted}


def test_special_tokens_of_marks_alone_are_kept_in_a_reply() -> None:
    chat = renderer(TURNS, "[THINK]", "[/THINK]", "[IMG]", "<|END_RESPONSE|>")
    hidden = chat.hidden(Sampling(marks=("[THINK]", "[/THINK]")))
    assert hidden is not None
    assert hidden.sub("", "[THINK]a[/THINK][IMG]b<|END_RESPONSE|>") == "[THINK]a[/THINK]b"
    assert chat.hidden(Sampling(marks=("<think>", "</think>"))) is None
    assert chat.hidden(Sampling(marks=("[THINK]",), special_tokens=True)) is None
    only = renderer(TURNS, "[THINK]").hidden(Sampling(marks=("[THINK]",)))
    assert only is not None and only.sub("", "[THINK]a") == "[THINK]a"


def test_control_tokens_are_escaped_in_every_text_of_a_message() -> None:
    call = {"id": "<image>", "type": "function", "function": {"name": "<image>", "arguments": '{"a": "<image>"}'}}
    messages = [
        {"role": "user", "content": [IMAGE_PART, {"type": "text", "text": "<image>"}]},
        {"role": "assistant", "content": "<image>", "tool_calls": [call]},
        {"role": "tool", "content": "<image>", "tool_call_id": "<image>", "name": "<image>"},
    ]
    written = str(renderer(TURNS, "<image>")._messages(json.dumps(messages)))
    assert "<image>" not in written and written.count("< image>") == 8
