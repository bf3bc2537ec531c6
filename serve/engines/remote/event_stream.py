"""Reads the server-sent events of OpenAI's chat completions into Pieces, within limits on size."""

import math
import re
from typing import Annotated, Any

import msgspec

from serve.engines.base import HALF, FinishReason, Piece, Token
from serve.engines.token_texts import align
from serve.errors import ModelError

MAX_BYTES = 32 * 2**20
"""Bytes of a reply's stream. The longest reply here, 32,768 tokens, takes about 10 MB."""
MAX_TEXT = 2**20
"""Characters of a reply's text."""
MAX_LINE = 2**18
"""Bytes of an event: with 20 alternatives a token takes 2 KB."""
Count = Annotated[int, msgspec.Meta(ge=0, le=2**31)]


class _Delta(msgspec.Struct):
    """A piece of a reply. Servers differ in the name of what a model thought: vLLM's, or DeepSeek's."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class _Alternative(msgspec.Struct):
    token: str
    logprob: float


class _TokenEntry(_Alternative):
    top_logprobs: list[_Alternative] | None = None


class _Logprobs(msgspec.Struct):
    content: list[_TokenEntry] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


_BYTES = re.compile(r"(?:bytes:)?(?:\\x[0-9a-f]{2})+")
"""OpenAI's name of a token that is a part of a character; vLLM's is HALF."""
_FINISH: dict[str, FinishReason] = {"stop": "stop", "length": "length", "abort": "abort"}
_decoder = msgspec.json.Decoder(_Chunk)


class EventReader:
    """A reader of one reply's stream, fed with bytes as they arrive.

    name: of the model, for errors. finish: the reply's finish reason, once it is known. done: whether the stream's end
    was announced.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.finish: FinishReason | None = None
        self.done = False
        self._rest = b""
        self._bytes = self._characters = 0
        self._usage = _Usage()

    @property
    def finished(self) -> bool:
        """Return whether the reply's end was announced, so that its text is whole."""
        return self.finish is not None or self.done

    def feed(self, data: bytes) -> Piece | None:
        """Return the text and tokens that became whole with `data`. Raises ModelError for what is no such stream."""
        self._bytes += len(data)
        if self._bytes > MAX_BYTES:
            raise self._failed(f"sent more than {MAX_BYTES // 2**20} MB for one reply")
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE:
            raise self._failed("sent an event that is too long")
        texts: list[str] = []
        reasoning: list[str] = []
        tokens: list[Token] = []
        for line in lines:
            if line.startswith(b"data:") and not self.done:  # other lines are comments, events' names, blank
                self._take(line[5:].strip(), texts, reasoning, tokens)
        if not (texts or reasoning or tokens):
            return None
        text, thought = "".join(texts), "".join(reasoning)
        self._characters += len(text) + len(thought)
        if self._characters > MAX_TEXT:
            raise self._failed(f"sent more than {MAX_TEXT:,} characters for one reply")
        return Piece(text, tuple(tokens), reasoning=thought)

    def end(self) -> Piece:
        """Return the last piece, with finish reason and counts, which are 0 where the server gave none."""
        usage = self._usage
        counts = usage.prompt_tokens or 0, usage.completion_tokens or 0
        return Piece("", (), self.finish or "stop", *counts)

    def _take(self, data: bytes, texts: list[str], reasoning: list[str], tokens: list[Token]) -> None:
        if data == b"[DONE]":
            self.done = True
            return
        try:
            chunk = _decoder.decode(data)
        except (msgspec.DecodeError, ValueError, RecursionError):
            raise self._failed("sent something that is no chat completion's chunk") from None
        if chunk.error is not None:
            raise self._failed("reported an error in the middle of its reply")
        self._usage = chunk.usage or self._usage
        for choice in (chunk.choices or [])[:1]:
            if choice.delta is not None:
                if thought := choice.delta.reasoning or choice.delta.reasoning_content:
                    reasoning.append(thought)
                if choice.delta.content:
                    texts.append(choice.delta.content)
            if choice.logprobs is not None:
                own = [_token(entry) for entry in choice.logprobs.content or []]
                if any(HALF in token.text for token in own):
                    own = [*align(own, (choice.delta and choice.delta.content) or "")]
                tokens += own
            if choice.finish_reason == "content_filter":
                raise ModelError(f"{self.name}'s server withheld the reply by its content filter.", code="withheld")
            if choice.finish_reason is not None:
                self.finish = _FINISH.get(choice.finish_reason, "stop")

    def _failed(self, what: str) -> ModelError:
        return ModelError(f"{self.name}'s server {what}.", code="remote_failed")


def _token(entry: _TokenEntry) -> Token:
    top = tuple((_text(other), _finite(other.logprob)) for other in entry.top_logprobs or [])
    return Token(_text(entry), _finite(entry.logprob), top)


def _text(entry: _Alternative) -> str:
    return HALF if _BYTES.fullmatch(entry.token) else entry.token


def _finite(logprob: float) -> float:
    """Return a log-probability that JSON has: at most 0, and no infinity."""
    return min(0.0, logprob) if math.isfinite(logprob) else -9999.0
