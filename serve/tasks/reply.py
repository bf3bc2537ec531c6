"""Replies of models to a task, and the merged reply."""

from dataclasses import dataclass, field
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny

from serve.engines.base import Generation
from serve.errors import ParseError
from serve.tasks.request import Probability

CUT = "The reply was cut by max_tokens before its first whole word."


class Result(BaseModel):
    """A model's reply as the task's own fields."""

    model_config = ConfigDict(extra="forbid")

    def as_text(self) -> str:
        """Write the value of the first field, such as a text or a number."""
        return str(next(iter(self.__dict__.values())))


class TextResult(Result):
    """A result whose first field is a text, and that needs no other."""

    @classmethod
    def of(cls, text: str) -> Self:
        return cls(**{next(iter(cls.model_fields)): text})

    @classmethod
    def read(cls, generation: Generation, request: Any = None) -> Self:
        """Return what a model wrote as the result. Raises ParseError where it wrote nothing."""
        text = generation.text.strip()
        if not text:
            raise ParseError(CUT if generation.cut else "The reply is empty.")
        return cls.of(text)


class Usage(BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = Field(default_factory=lambda given: given["prompt_tokens"] + given["completion_tokens"])


class ReplyError(BaseModel):
    code: str
    message: str


@dataclass(frozen=True)
class Delta:
    """A piece of a model's text, as it is generated. reasoning: a piece of what it writes before its answer.

    prompt_tokens, completion_tokens: read and generated until now, as far as its engine says.
    """

    model: str
    text: str
    reasoning: str = ""
    prompt_tokens: int = field(default=0, compare=False)
    completion_tokens: int = field(default=0, compare=False)

    def usage(self) -> Usage:
        """Return the tokens until now."""
        return Usage(prompt_tokens=self.prompt_tokens, completion_tokens=self.completion_tokens)


@dataclass(frozen=True)
class Waiting:
    """A notice that a model does not work on a request yet, and what it waits for, as a clause."""

    model: str
    message: str


class Reply(BaseModel):
    """A model's whole reply, or the error in its place.

    text: its answer as it was written, of a failed reply as far as it came. reasoning: what a model that reasons wrote
    before; it is not parsed or merged, and a failed reply has none.
    energy_j: what its GPUs used for it, in joules, where its engine has them to itself; left out elsewhere.
    """

    model_config = ConfigDict(protected_namespaces=())

    model: str
    status: Literal["ok", "error", "timeout"]
    result: SerializeAsAny[Result] | None = None
    text: str = ""
    reasoning: str | None = None
    error: ReplyError | None = None
    confidence: Probability | None = None
    latency_ms: float = 0.0
    ttft_ms: float | None = None
    usage: Usage = Field(default_factory=Usage)
    finish_reason: Literal["stop", "length", "abort"] | None = None
    energy_j: float | None = Field(default=None, exclude_if=lambda joules: joules is None)


class Judgement(BaseModel):
    """A judge's part in a merge. model: which was to write the merged reply; None where none was ready.

    error: the reason why it did not, so that the task's own method stands in.
    """

    model_config = ConfigDict(protected_namespaces=())

    model: str | None
    error: ReplyError | None = None
    usage: Usage = Field(default_factory=Usage)


class Merged(BaseModel):
    """The merged reply. models: those whose replies were merged; agreement: 0..1.

    supporters: the models behind the result, or behind each of its boxes. deviations: each model's distance, 0..1.
    error: why there is no result, where the models agree less than the request wants; left out elsewhere.
    """

    result: SerializeAsAny[Result] | None = None
    method: str
    agreement: Probability
    models: list[str]
    supporters: list[list[str]]
    deviations: dict[str, Probability]
    judge: Judgement | None = None
    error: ReplyError | None = Field(default=None, exclude_if=lambda error: error is None)


def text_of(reply: Reply) -> str:
    """Return the text of a reply to a task that is answered in one."""
    assert isinstance(reply.result, TextResult)
    return reply.result.as_text()


Event = Waiting | Delta | Reply | Merged
