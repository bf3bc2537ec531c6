"""Calls of functions: which models write them in which format, and how a conversation with them is told.

A format has the name of vLLM's parser that reads it in the engine's process (serve/engines/vllm/tool_calls.py).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from serve.engines.remote.chat_request import IMAGE_PART
from serve.errors import BadRequest
from serve.models.base import Turn

HERMES, GLM, GEMMA4, MISTRAL, QWEN3_CODER = "hermes", "glm45", "gemma4", "mistral", "qwen3_coder"
_TAGS = ("<tool_call>", "</tool_call>")
MARKS: Mapping[str, tuple[str, ...]] = {
    HERMES: _TAGS,
    GLM: (*_TAGS, "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    GEMMA4: ("<|tool_call>", "<tool_call|>", '<|"|>'),
    MISTRAL: ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"),
    QWEN3_CODER: _TAGS,
}
"""Texts around the calls of each format, whose special tokens a reply keeps."""
_IN_TEMPLATE = (
    ("<|tool_call>", GEMMA4),
    ("[TOOL_CALLS]", MISTRAL),
    ("<arg_key>", GLM),
    ("<function=", QWEN3_CODER),
    ("<tool_call>", HERMES),
)
"""A text of a chat template, and the format that it shows; the first one counts."""


def template_format(template: str | None) -> str | None:
    """Return the format of calls that a chat template asks for; None where it shows none that is known here."""
    if template is None or "tools" not in template:
        return None
    return next((name for mark, name in _IN_TEMPLATE if mark in template), None)


def tool_messages(turns: Sequence[Turn]) -> str:
    """Return a conversation as OpenAI's `messages`, in JSON, with its calls and their results.

    Consecutive messages of one role are joined, but for results, and text after a call: templates refuse two questions
    in a row (Mistral's). Raises BadRequest naming the message at fault.
    """
    joined: list[Turn] = []
    for index, turn in enumerate(turns):
        if turn.role == "system" and joined and joined[-1].role != "system":
            raise BadRequest("A system message must come first.", param=f"messages[{index}]")
        if turn.role == "assistant" and not turn.text and not turn.calls:
            continue
        last = joined[-1] if joined else None
        if last is not None and last.role == turn.role != "tool" and not last.calls:
            text = "\n".join(text for text in (last.text, turn.text) if text)
            joined[-1] = replace(turn, text=text, has_image=last.has_image or turn.has_image)
        else:
            joined.append(turn)
    if not turns or turns[-1].role not in ("user", "tool"):
        raise BadRequest("The last message must be the user's, or a tool's result.", param="messages")
    return json.dumps([_message(turn) for turn in joined], ensure_ascii=False)


def _message(turn: Turn) -> dict[str, Any]:
    message: dict[str, Any] = {"role": turn.role, "content": turn.text}
    if turn.has_image:
        message["content"] = [IMAGE_PART, *([{"type": "text", "text": turn.text}] if turn.text else [])]
    if turn.calls:
        message["tool_calls"] = json.loads(turn.calls)
    if turn.role == "tool":
        message |= {"tool_call_id": turn.call} | ({"name": turn.function} if turn.function else {})
    return message


def plain_turns(turns: Sequence[Turn]) -> list[Turn]:
    """Return a conversation for a model that calls no functions: their results are the user's words."""
    return [
        Turn("user", f"Result of {turn.function or 'a tool'}: {turn.text}")
        if turn.role == "tool"
        else Turn(turn.role, turn.text, turn.has_image, turn.has_video)
        for turn in turns
    ]
