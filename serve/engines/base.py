"""What every engine takes and gives."""

import bisect
import functools
import itertools
import math
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from serve.media.image import Image
from serve.media.video import Video

FinishReason = Literal["stop", "length", "abort"]
HALF = "\ufffd"
"""The name of a token that is a part of a letter."""
State = Literal["starting", "ready", "asleep", "failed"]
"""Where a model stands. asleep: no process of it runs; the first request starts one."""


@dataclass(frozen=True)
class Sampling:
    """How to draw tokens. Temperature 0 is greedy, and so is top_p 0."""

    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    ignore_eos: bool = False
    logprobs: bool = True
    """Whether each Token is told with its log-probability; merging weighs by it. Without, pieces have no tokens."""
    top_logprobs: int = 0
    """How many alternatives each Token carries besides its own log-probability (at most 20)."""
    json_schema: str | None = None
    """A JSON schema (as JSON text) that the reply must satisfy."""


@dataclass(frozen=True)
class Prompt:
    """The exact text and picture a model reads; the engine adds the image tokens, `<bos>` where the processor does."""

    text: str
    image: Image | None
    sampling: Sampling = field(default_factory=Sampling)
    video: Video | None = None
    """Frames in place of the image, for a family that was trained on video."""
    adapter: str | None = None
    """The LoRA adapter, by its model's name, that speaks; None is the checkpoint as it is."""
    whole: bool = False
    """The reply is wanted in one piece, once it is all there."""
    batch: bool = False
    """It may wait for all that are not."""


@dataclass(frozen=True)
class Token:
    """One spoken token: its text, its natural-log probability, and the likeliest alternatives."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """The next words. The last piece of a generation has a finish_reason and the final counts."""

    text: str
    tokens: tuple[Token, ...] = ()
    finish_reason: FinishReason | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def then(self, later: "Piece") -> "Piece":
        """Both as one."""
        return replace(later, text=self.text + later.text, tokens=self.tokens + later.tokens)


@dataclass(frozen=True)
class Spoken:
    """A whole generation: its text and tokens, whose texts joined give the text (special tokens included).

    cut: it was broken off by max_tokens, so what it ends with may be half of something.
    """

    text: str
    tokens: tuple[Token, ...] = ()
    cut: bool = False

    def confidence(self, start: int = 0, end: int | None = None) -> float:
        """Geometric mean probability (0..1) of the tokens that overlap text[start:end]; 1.0 where none is known."""
        first = bisect.bisect_right(self._edges, start, 1) - 1
        last = bisect.bisect_left(self._edges, len(self.text) if end is None else end, 0, len(self.tokens))
        logprobs = [token.logprob for token in self.tokens[first:last]]
        return math.exp(sum(logprobs) / len(logprobs)) if logprobs else 1.0

    @functools.cached_property
    def _edges(self) -> list[int]:
        """Where each token begins in the text, and the last one ends; once, as a reply may hold hundreds of boxes."""
        return list(itertools.accumulate((len(token.text) for token in self.tokens), initial=0))


class Engine(Protocol):
    """One model's weights, ready to speak. Leaving `generate` early (aclose or cancel) aborts the work."""

    async def start(self) -> None:
        """Load the weights. Raises ModelError with one clear sentence when that cannot be done."""

    def generate(self, prompt: Prompt) -> AsyncGenerator[Piece, None]:
        """Speak. The prompt's picture may be a file still: the engine decodes it, unless it knows that very file.

        Raises BadRequest for a prompt that does not fit or a picture that is damaged, ModelError when the engine died.
        """

    async def check(self) -> None:
        """Raises ModelError when the engine is dead."""

    async def stop(self) -> None:
        """Free everything; leaves no process behind."""
