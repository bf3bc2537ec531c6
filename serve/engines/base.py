"""The interface of engines: Prompt in, Pieces out."""

import bisect
import functools
import itertools
import math
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, Protocol

from serve.media.image import Image
from serve.media.video import Video

FinishReason = Literal["stop", "length", "abort"]
HALF = "\ufffd"
"""The text of a token that is a part of a character."""
State = Literal["starting", "ready", "asleep", "failed"]
"""A model's state. asleep: it uses no GPU, or no process of it runs; a request wakes it, or starts one."""


@dataclass(frozen=True)
class Memory:
    """The memory of a running engine, on each of its GPUs or in main memory. requests: with a picture, at a time."""

    weights_bytes: int
    cache_bytes: int
    requests: int


@dataclass(frozen=True)
class Wakes:
    """The wakings of a model of a group since its process started, and the seconds that the last one took."""

    count: int
    last_s: float


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters of a reply. Temperature 0 is greedy, and so is top_p 0."""

    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    ignore_eos: bool = False
    logprobs: bool = True
    """Whether pieces carry Tokens with log-probabilities, which merging weighs by. Without, pieces have no tokens."""
    top_logprobs: int = 0
    """The number of alternatives that each Token carries, at most 20."""
    special_tokens: bool = False
    """Whether a chat engine's reply keeps its special tokens, which may be the answer (`<|box_start|>`)."""
    marks: tuple[str, ...] = ()
    """Texts whose special tokens a chat engine's reply keeps, while it leaves out all others."""
    json_schema: str | None = None
    """A JSON schema (as JSON text) that the reply must satisfy."""
    thinking_token_budget: int | None = None
    """Tokens of reasoning after which the engine ends it, so that the answer begins. None: no limit."""


@dataclass(frozen=True)
class ReasoningOptions:
    """A request's wishes for a model's reasoning, by the names of OpenAI's and vLLM's parameters.

    effort: `reasoning_effort`; "none" is off. enabled: `chat_template_kwargs.enable_thinking`. budget:
    `thinking_token_budget`, in tokens. None: as the model does by itself.
    """

    effort: str | None = None
    enabled: bool | None = None
    budget: int | None = None

    @property
    def on(self) -> bool | None:
        """Return whether the model is to reason; None where that is not said."""
        return self.enabled if self.effort is None else self.effort != "none"


@dataclass(frozen=True)
class Tools:
    """Functions that a reply may call. schemas: OpenAI's `tools`, as JSON text. parser: the name of vLLM's parser that
    reads the calls in the reply's text; None where a grammar holds the reply to what is read."""

    schemas: str
    parser: str | None = None


@dataclass(frozen=True)
class Prompt:
    """The exact text and image that a model gets.

    The engine expands image tokens and adds `<bos>` as the processor does.
    """

    text: str
    image: Image | None
    sampling: Sampling = field(default_factory=Sampling)
    video: Video | None = None
    """A video in place of the image, for a family that was trained on video."""
    adapter: str | None = None
    """The name of the LoRA adapter to use; None for the checkpoint alone."""
    whole: bool = False
    """Whether the reply is not streamed: after its first token it may come in large pieces."""
    reasoning: ReasoningOptions = ReasoningOptions()
    """What is asked of a model that reasons; its budget is in `sampling`."""
    batch: bool = False
    """Whether the request has batch priority: it waits for all requests that have not."""
    tools: Tools | None = None
    """What the chat template is told of functions; None: nothing."""


class PictureLimits(NamedTuple):
    """The limits to which an engine resizes a picture in its own shape: sides in multiples of `unit` pixels, an area of
    least to most pixels."""

    unit: int
    least: int
    most: int


class Token(NamedTuple):
    """A generated token: its text, its natural-log probability, and the likeliest alternatives."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class ToolCallPart:
    """A part of a function's call. index: of the call in the reply. id, name: with its first part. arguments: a part of
    the JSON text of its arguments."""

    index: int
    arguments: str = ""
    id: str = ""
    name: str = ""


class ToolReader(Protocol):
    """Reads the calls in one reply."""

    def feed(self, piece: "Piece") -> "Piece":
        """Return the next piece with its calls in `tool_calls`, and without their text."""


@dataclass(frozen=True)
class Piece:
    """A part of a reply. The last piece of a generation has a finish_reason and the final counts.

    reasoning: what the model thought, where that has been told apart from its answer (serve/models/reasoning.py). It
    comes before `text`, and its tokens are left out of `tokens`. prompt_end: in a first piece, the end of the prompt
    that a chat engine wrote, which may begin the reasoning.
    """

    text: str
    tokens: tuple[Token, ...] = ()
    finish_reason: FinishReason | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning: str = ""
    prompt_end: str = ""
    tool_calls: tuple[ToolCallPart, ...] = ()

    def then(self, later: "Piece") -> "Piece":
        """Return this piece followed by `later`. finish_reason and counts are those of `later`."""
        return replace(
            later,
            text=self.text + later.text,
            tokens=self.tokens + later.tokens,
            reasoning=self.reasoning + later.reasoning,
            tool_calls=self.tool_calls + later.tool_calls,
        )


@dataclass(frozen=True)
class Generation:
    """A whole generation: its text and tokens, whose texts joined give the text (special tokens included).

    cut: whether it was ended by max_tokens, so that its last answer, box or word may be incomplete.
    """

    text: str
    tokens: tuple[Token, ...] = ()
    cut: bool = False

    def confidence(self, start: int = 0, end: int | None = None) -> float:
        """Return the geometric mean probability (0..1) of the tokens that overlap text[start:end]; 1.0 without any."""
        return self.confidence_of([(start, len(self.text) if end is None else end)])

    def confidence_of(self, spans: Iterable[tuple[int, int]]) -> float:
        """Return the same of the tokens that overlap any of the spans (start, end), each token once."""
        rows: set[int] = set()
        for start, end in spans:
            first = bisect.bisect_right(self._edges, start, 1) - 1
            rows.update(range(first, bisect.bisect_left(self._edges, end, 0, len(self.tokens))))
        logprobs = [self.tokens[row].logprob for row in sorted(rows)]
        return math.exp(sum(logprobs) / len(logprobs)) if logprobs else 1.0

    @functools.cached_property
    def _edges(self) -> list[int]:
        """Return each token's start in the text, then the text's end. Cached, as a reply may hold hundreds of boxes."""
        return list(itertools.accumulate((len(token.text) for token in self.tokens), initial=0))


class Engine(Protocol):
    """A loaded model that generates text. Closing or cancelling `generate` aborts the request."""

    async def start(self) -> None:
        """Load the weights. Raises ModelError with one clear sentence when that cannot be done."""

    def generate(self, prompt: Prompt) -> AsyncGenerator[Piece, None]:
        """Generate a reply. The engine decodes the prompt's image where it is undecoded and not in the engine's cache.

        Raises BadRequest for a prompt that is too long or an image that is damaged, ModelError when the engine died.
        """

    async def check(self) -> None:
        """Raise ModelError when the engine is dead."""

    async def stop(self) -> None:
        """Free all resources and end all processes."""
