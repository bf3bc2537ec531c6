"""What goes out: OpenAI's completion objects, whole and in chunks."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from serve.chat_completions.request import StreamOptions
from serve.engines.base import Token
from serve.tasks.base import Usage
from serve.wire.sse import frame

FinishReason = Literal["stop", "length"]
LEAST = -9999.0  # JSON has no minus infinity


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class Logprobs(BaseModel):
    content: list[TokenLogprob]
    refusal: None = None


class Said(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    """One choice. diptych: whose words these are and what they mean, where a task was asked."""

    index: int
    message: Said
    finish_reason: FinishReason
    logprobs: Logprobs | None = None
    diptych: dict[str, Any] | None = Field(default=None, description="Present where a task was asked.")

    @model_serializer(mode="wrap")
    def _plain(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A model asked alone gets OpenAI's fields and no others."""
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
class Head:
    """What every object of one completion repeats."""

    request_id: str
    model: str
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def id(self) -> str:
        return f"chatcmpl-{self.request_id}"

    def completion(self, choices: list[Choice], usage: Usage) -> ChatCompletion:
        return ChatCompletion(id=self.id, created=self.created, model=self.model, choices=choices, usage=usage)


class Chunks:
    """The frames of one streamed completion, with usage where the client asked for it."""

    def __init__(self, head: Head, options: StreamOptions | None) -> None:
        self.head = head
        self.at_the_end = bool(options and options.include_usage)
        self.all_along = bool(options and options.continuous_usage_stats)

    def role(self, index: int, usage: Usage, **more: Any) -> bytes:
        """The chunk that opens a choice."""
        return self._chunk(index, {"role": "assistant", "content": ""}, None, usage, more)

    def words(self, index: int, text: str, usage: Usage, **more: Any) -> bytes:
        return self._chunk(index, {"content": text}, None, usage, more)

    def finish(self, index: int, reason: FinishReason, usage: Usage, **more: Any) -> bytes:
        """The chunk that closes a choice."""
        return self._chunk(index, {}, reason, usage, more)

    def last(self, usage: Usage) -> list[bytes]:
        """The chunk after all choices, which has none: only for those who asked for usage."""
        return [self._frame([], usage)] if self.at_the_end else []

    def _chunk(
        self, index: int, delta: dict[str, str], reason: FinishReason | None, usage: Usage, more: dict[str, Any]
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason, **more}
        return self._frame([choice], usage if self.all_along else None)

    def _frame(self, choices: list[dict[str, Any]], usage: Usage | None) -> bytes:
        data: dict[str, Any] = {
            "id": self.head.id,
            "object": "chat.completion.chunk",
            "created": self.head.created,
            "model": self.head.model,
            "choices": choices,
        }
        if self.at_the_end or self.all_along:
            data["usage"] = usage.model_dump() if usage else None
        return frame(data)


def logprobs(tokens: Sequence[Token], top: int) -> Logprobs:
    """Tokens' log-probabilities in OpenAI's form."""
    return Logprobs(
        content=[
            TokenLogprob(
                **_likely(token.text, token.logprob),
                top_logprobs=[TopLogprob(**_likely(*pair)) for pair in token.top[:top]],
            )
            for token in tokens
        ]
    )


def finish_reason(reason: str | None) -> FinishReason:
    """OpenAI knows no "abort": what was cut is simply over."""
    return "length" if reason == "length" else "stop"


def _likely(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": max(logprob, LEAST), "bytes": list(text.encode())}
