"""Writes a prompt as the body of OpenAI's POST /chat/completions. Only fields that the server takes are sent."""

import json
import secrets
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from typing import Any, Literal

import pybase64

from serve.engines.base import Prompt, Sampling
from serve.engines.json_schema import optional_properties
from serve.errors import BadRequest

ChatField = Literal[
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "seed",
    "stop",
    "presence_penalty",
    "frequency_penalty",
    "response_format",
    "logprobs",
    "ignore_eos",
    "stream_options",
    "reasoning_effort",
    "chat_template_kwargs",
    "thinking_token_budget",
]
"""Fields that not every server takes. `model`, `messages` and `stream` are always sent."""
DEFAULT_FIELDS: tuple[ChatField, ...] = (
    *("max_tokens", "temperature", "top_p", "seed", "stop", "presence_penalty", "frequency_penalty"),
    *("response_format", "stream_options"),
)
IMAGE_PART: dict[str, Any] = {"type": "image_url", "image_url": {"url": ""}}
"""Stands in a prompt's messages where the image goes."""
OWN_WORDS = "own_words"
"""Marks a text in a prompt's messages as the family's own: control tokens in it are meant."""
DEFAULT_EFFORT = "medium"
ANY_OBJECT = '{"type":"object"}'
PIECE = 3 * 2**18
"""Bytes of an image that are encoded and sent at once: a multiple of three, so that base64 has no padding between."""


@dataclass(frozen=True)
class Body:
    """A request's body: `before`, the image as base64, `after`. It is encoded while it is sent, so never held whole."""

    before: bytes
    image: bytes
    after: bytes

    @property
    def size(self) -> int:
        return len(self.before) + (len(self.image) + 2) // 3 * 4 + len(self.after)

    async def parts(self) -> AsyncIterator[bytes]:
        yield self.before
        for start in range(0, len(self.image), PIECE):
            yield pybase64.b64encode(self.image[start : start + PIECE])
        yield self.after


def chat_body(name: str, model: str, fields: Collection[ChatField], prompt: Prompt, image: tuple[str, bytes]) -> Body:
    """Return the body for a prompt, whose text is OpenAI's `messages` as JSON.

    name: of the model here, for errors; model: at the server. image: its media type and file, empty where there is
    none. Raises BadRequest naming a sampling field that the server does not take.
    """
    media_type, file = image
    place = secrets.token_hex(16)  # in no text of the client's
    messages = json.loads(prompt.text)
    for message in messages:
        for part in message["content"] if isinstance(message["content"], list) else ():
            if part == IMAGE_PART:
                part["image_url"] = {"url": f"data:{media_type};base64,{place}"}
    whole = {"model": model, "messages": messages, "stream": True, **sampling_fields(name, fields, prompt.sampling)}
    whole |= reasoning_fields(fields, prompt)
    before, _, after = json.dumps(whole, ensure_ascii=False).partition(place)
    return Body(before.encode(), file, after.encode())


def sampling_fields(name: str, fields: Collection[ChatField], sampling: Sampling) -> dict[str, Any]:
    """Return the fields to send. One that the server does not take is left out at its default here.

    Raises BadRequest naming one that has another value.
    """
    greedy = sampling.top_p == 0  # which some servers refuse; temperature 0 means the same
    temperature, top_p = (0.0, 1.0) if greedy else (sampling.temperature, sampling.top_p)
    schema = sampling.json_schema
    wanted: dict[ChatField, Any] = {
        "max_tokens" if "max_tokens" in fields else "max_completion_tokens": sampling.max_tokens,
        "temperature": temperature,
        **({"top_p": top_p} if top_p != 1 else {}),
        **({} if sampling.seed is None else {"seed": sampling.seed}),
        **({"stop": list(sampling.stop)} if sampling.stop else {}),
        **({"presence_penalty": sampling.presence_penalty} if sampling.presence_penalty else {}),
        **({"frequency_penalty": sampling.frequency_penalty} if sampling.frequency_penalty else {}),
        **({"ignore_eos": True} if sampling.ignore_eos else {}),
        **({} if schema is None else {"response_format": _response_format(schema)}),
        **({"logprobs": True} if sampling.logprobs else {}),
        "stream_options": {"include_usage": True},
    }
    defaults = {"temperature": (0, 1), "stream_options": ({"include_usage": True},)}
    for field, value in wanted.items():
        if field not in fields and value not in defaults.get(field, ()):
            raise BadRequest(f"{name}'s server does not take {field}.", param=field, code="unsupported_parameter")
    sent: dict[str, Any] = {field: value for field, value in wanted.items() if field in fields}
    if sampling.logprobs and sampling.top_logprobs:
        sent["top_logprobs"] = sampling.top_logprobs
    return sent


def reasoning_fields(fields: Collection[ChatField], prompt: Prompt) -> dict[str, Any]:
    """Return the fields that turn a model's reasoning on or off and limit it, of those that the server takes."""
    on, effort, sent = prompt.reasoning.on, prompt.reasoning.effort, dict[str, Any]()
    if on is not None and "chat_template_kwargs" in fields:
        sent["chat_template_kwargs"] = {"enable_thinking": on}
    if "reasoning_effort" in fields and (effort is not None or (on is not None and not sent)):
        sent["reasoning_effort"] = effort or (DEFAULT_EFFORT if on else "none")
    if "thinking_token_budget" in fields and prompt.sampling.thinking_token_budget is not None:
        sent["thinking_token_budget"] = prompt.sampling.thinking_token_budget
    return sent


def _response_format(schema: str) -> dict[str, Any]:
    if schema == ANY_OBJECT:
        return {"type": "json_object"}
    known = json.loads(schema)
    return {"type": "json_schema", "json_schema": {"name": "reply", "schema": known, "strict": _is_strict(known)}}


def _is_strict(schema: Any) -> bool:
    """Return whether every object in a schema is closed and requires all of its properties: OpenAI's server refuses
    any other as strict."""
    left = [schema]
    while left:
        node = left.pop()
        left += node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        if not isinstance(node, dict) or (
            node.get("type") != "object" and not isinstance(node.get("properties"), dict)
        ):
            continue
        if node.get("additionalProperties") is not False or optional_properties(node):
            return False
    return True
