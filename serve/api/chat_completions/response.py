"""OpenAI's completion objects, complete and as chunks of a stream."""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from serve.api.chat_completions.request import StreamOptions
from serve.api.responses import encode_json, sse_event
from serve.engines.base import HALF, Token, ToolCallPart
from serve.tasks.reply import Usage

FinishReason = Literal["stop", "length", "tool_calls"]
LEAST = -9999.0  # JSON has no minus infinity, and nothing that is no number
AT_ONCE = 1000
"""Log-probabilities encoded in one turn of the event loop: about 3 ms of work."""


class TopLogprob(BaseModel):
    """An alternative token. bytes: null where it is only a part of a character."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(BaseModel):
    """A token of the reply. The bytes of all tokens make up the text: a character's last token has all its bytes."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class Logprobs(BaseModel):
    content: list[TokenLogprob]
    refusal: None = None


class CalledFunction(BaseModel):
    name: str
    arguments: str = Field(description="JSON text, as the model wrote it.")


class ToolCall(BaseModel):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class ResponseMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[ToolCall] | None = Field(default=None, exclude_if=lambda calls: calls is None)
    reasoning: str | None = Field(
        default=None,
        exclude_if=lambda reasoning: reasoning is None,
        description="What a model that reasons wrote before its answer; vLLM's field.",
    )


class Choice(BaseModel):
    """A choice. diptych: the model and its parsed reply, where `model` named a task."""

    index: int
    message: ResponseMessage
    finish_reason: FinishReason
    logprobs: Logprobs | None = None
    diptych: dict[str, Any] | None = Field(default=None, description="Present where `model` named a task.")

    @model_serializer(mode="wrap")
    def _plain(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out `diptych` where it is None, so that there are only OpenAI's fields."""
        fields: dict[str, Any] = handler(self)
        if self.diptych is None:
            del fields["diptych"]
        return fields


class ChatCompletion(BaseModel):
    model_config = ConfigDict(protected_namespaces=())

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    system_fingerprint: None = None


@dataclass(frozen=True)
class CompletionHead:
    """The fields that all objects of a completion share."""

    request_id: str
    model: str
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def id(self) -> str:
        return f"chatcmpl-{self.request_id}"

    def completion(self, choices: list[Choice], usage: Usage) -> BaseModel:
        """Return the whole object."""
        return ChatCompletion(id=self.id, created=self.created, model=self.model, choices=choices, usage=usage)

    def events(self, options: StreamOptions | None, usage: Callable[[], Usage]) -> "CompletionEvents":
        """Return the writer of a stream's events. usage: called only where the client wants it."""
        return Chunks(self, options, usage)


class CompletionEvents(Protocol):
    """A writer of a stream's events as server-sent events. more: fields of the choice, as `diptych`."""

    def open(self, choices: Sequence[dict[str, Any]]) -> bytes:
        """Open all choices: openai's stream helper wants a choice's first chunk after those of lower indexes.
        choices: of each, further fields."""

    def text(self, index: int, text: str, **more: Any) -> bytes: ...

    def reasoning(self, index: int, text: str) -> bytes:
        """Write what the model writes before its answer."""

    def tool_calls(self, index: int, parts: Sequence[ToolCallPart]) -> bytes:
        """Write parts of calls of functions."""

    def finish(self, index: int, reason: FinishReason, **more: Any) -> bytes:
        """Close a choice."""

    def last(self) -> bytes:
        """End the stream; empty where nothing is left to send."""


class Chunks:
    """Encodes the chunks of a streamed completion. usage: called only where the client wants it."""

    def __init__(self, head: CompletionHead, options: StreamOptions | None, usage: Callable[[], Usage]) -> None:
        self.usage = usage
        self.at_the_end = bool(options and options.include_usage)
        self.all_along = bool(options and options.continuous_usage_stats)
        same = {"id": head.id, "object": "chat.completion.chunk", "created": head.created, "model": head.model}
        self._same = encode_json(same).removesuffix("}")  # written once, repeated in every chunk

    def open(self, choices: Sequence[dict[str, Any]]) -> bytes:
        """Return a chunk for each choice, with its role."""
        role = {"role": "assistant", "content": ""}
        return b"".join(self._chunk(index, role, None, more) for index, more in enumerate(choices))

    def text(self, index: int, text: str, **more: Any) -> bytes:
        return self._chunk(index, {"content": text}, None, more)

    def reasoning(self, index: int, text: str) -> bytes:
        """Return a chunk of what the model writes before its answer, in the field that vLLM has for it."""
        return self._chunk(index, {"reasoning": text}, None, {})

    def tool_calls(self, index: int, parts: Sequence[ToolCallPart]) -> bytes:
        calls = [
            {"index": part.index, "id": part.id, "type": "function",
             "function": {"name": part.name, "arguments": part.arguments}}
            if part.id
            else {"index": part.index, "function": {"arguments": part.arguments}}
            for part in parts
        ]  # fmt: skip
        return self._chunk(index, {"tool_calls": calls}, None, {})

    def finish(self, index: int, reason: FinishReason, **more: Any) -> bytes:
        """Return the chunk that closes a choice."""
        return self._chunk(index, {}, reason, more)

    def last(self) -> bytes:
        """Return the last chunk, with usage and no choice; empty where the client did not ask for usage."""
        return self._event("", self.usage()) if self.at_the_end else b""

    def _chunk(self, index: int, delta: dict[str, Any], reason: FinishReason | None, more: dict[str, Any]) -> bytes:
        choice = encode_json({"index": index, "delta": delta, "logprobs": None, "finish_reason": reason, **more})
        return self._event(choice, self.usage() if self.all_along else None)

    def _event(self, choice: str, usage: Usage | None) -> bytes:
        counts = ""
        if self.at_the_end or self.all_along:
            counts = f',"usage":{usage.model_dump_json() if usage else "null"}'
        return sse_event(f'{self._same},"choices":[{choice}]{counts}}}')


def logprobs(tokens: Sequence[Token], top: int) -> dict[str, Any]:
    """Return tokens' log-probabilities as a `Logprobs` in JSON. It uses plain lists: there may be 100,000 of them."""
    content = [
        {
            **_likely(token.text, token.logprob),
            "top_logprobs": [_alternative(*pair) for pair in token.top[:top]],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def slices(tokens: Sequence[Token], top: int) -> Iterator[Sequence[Token]]:
    """Split tokens into slices of about AT_ONCE log-probabilities, including alternatives."""
    step = max(1, AT_ONCE // (1 + top))
    return (tokens[at : at + step] for at in range(0, len(tokens), step))


async def with_logprobs(
    completion: BaseModel, choices: Sequence[Choice], tokens_by_choice: Sequence[Sequence[Token]], top: int
) -> list[bytes]:
    """Return a chat completion as JSON, in parts, with the log-probabilities of each choice's tokens.

    They are encoded slice by slice, and the event loop does other work in between.
    """
    head = completion.model_dump_json(exclude={"choices"}).removesuffix("}")
    parts = [f'{head},"choices":['.encode()]
    for at, (choice, tokens) in enumerate(zip(choices, tokens_by_choice, strict=True)):
        opening = choice.model_dump_json(exclude={"logprobs"}).removesuffix("}")
        parts.append(f'{"," if at else ""}{opening},"logprobs":{{"content":['.encode())
        for i, part in enumerate(slices(tokens, top)):
            text = ",".join(map(encode_json, logprobs(part, top)["content"]))
            parts.append(f"{',' if i else ''}{text}".encode())
            await asyncio.sleep(0)
        parts.append(b'],"refusal":null}}')
    return [*parts, b"]}"]


def finish_reason(reason: str | None, *, called: bool = False) -> FinishReason:
    """Return the reason as one of OpenAI's; "abort", which it lacks, becomes "stop". called: the model called tools."""
    return "length" if reason == "length" else "tool_calls" if called else "stop"


def whole_calls(parts: Sequence[ToolCallPart]) -> list[ToolCall]:
    """Return the calls of a reply, made whole of their parts."""
    calls: dict[int, list[ToolCallPart]] = {}
    for part in parts:
        calls.setdefault(part.index, []).append(part)
    return [
        ToolCall(
            id=of_call[0].id,
            function=CalledFunction(name=of_call[0].name, arguments="".join(part.arguments for part in of_call)),
        )
        for of_call in calls.values()
    ]


def _likely(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob if logprob > LEAST else LEAST, "bytes": list(text.encode())}


def _alternative(text: str, logprob: float) -> dict[str, Any]:
    likely = _likely(text, logprob)
    return {**likely, "bytes": None} if HALF in text else likely
