"""A task: its request, its result, and the rules that merge several replies into one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from serve.engines.base import Generation
from serve.tasks.reply import Merged, Reply, Result
from serve.tasks.request import Request


def split_phrases(text: str) -> list[str]:
    """Split a text at commas and semicolons: "a cat; a dog" -> ["a cat", "a dog"]."""
    return [phrase.strip() for phrase in text.replace(";", ",").split(",") if phrase.strip()]


@dataclass(frozen=True)
class TextField:
    """The field of a task's request for what the client writes beside the image: one text, phrases, or JSON.

    Forms, chats, pages, command line, annotation files, load test and models of one's own know it from here alone.
    name: in the request. title: of its input on a page. missing: the command line's question where it is missing.
    """

    name: str
    title: str
    missing: str
    kind: Literal["text", "phrases", "json"] = "text"

    def parse(self, text: str) -> str | list[str]:
        """Return the field's value of a text: of phrases, those between commas and semicolons."""
        return split_phrases(text) if self.kind == "phrases" else text

    def write(self, value: str | Sequence[str]) -> str:
        """Return the text of a value: phrases with semicolons between them."""
        return value if isinstance(value, str) else "; ".join(value)


QUESTION = TextField("question", "Question", "Which question?")
LABELS = TextField("labels", "Phrases, separated by semicolons", "What to find?", "phrases")

MergeRule = Callable[[Sequence[Reply], Mapping[str, float]], Merged]
"""(replies that are ok, in catalogue order, at least one; weight per model, 1.0 where absent) -> Merged."""


@dataclass(frozen=True)
class Judging:
    """The functions that a judge needs of a task that is answered in sentences.

    instruction: a request -> the words that ask it. text: a reply -> its text. result: the judge's text -> a result.
    """

    instruction: Callable[[Any], str]
    text: Callable[[Reply], str]
    result: Callable[[str], Result]


@dataclass(frozen=True)
class Instruction:
    """The prompt and the parser of a task for models that follow instructions, those on other servers among them.

    prompt: a request -> the text beside the image. read: the reply and the request -> the result; raises ParseError for
    text that is none, and where `Generation.cut` says that it may miss its end. max_tokens: where the request gives
    none. schema: a request -> a JSON schema that the reply must satisfy, where the engine takes one.
    """

    prompt: Callable[[Any], str]
    read: Callable[[Generation, Any], Result]
    max_tokens: int
    schema: Callable[[Any], str] | None = None


@dataclass(frozen=True)
class Task:
    """A task: its request, its result, and the rules that merge replies (the first method is the default).

    All that other packages know of a task stands here: routes, command line, page, evaluation and load test read it.
    """

    name: str
    title: str
    request: type[Request]
    result: type[Result]
    methods: Mapping[str, MergeRule]
    known_as: tuple[str, ...] = ()
    """Other names that people know it by, in addresses of comparisons: /object-detection/A-vs-B."""
    text_field: TextField | None = None
    """Present where the client writes something beside the image."""
    example: Mapping[str, Any] = field(default_factory=dict)
    """The fields of a typical request, without the image: the page shows it, the tests send it."""
    instruction: Instruction | None = None
    """Present where a model can be told in words to do it."""
    by_confidence: bool = False
    """A merge method weighs replies by their confidence, beyond ties: models are asked for log-probabilities."""
    as_text: Callable[[Any], str] = Result.as_text
    """Write a result as a person reads it; also the text of a merged chat completion."""
    heavy: bool = False
    """Merging takes long enough to hold others up, however short the replies are."""
    verbatim: bool = False
    """Capitals and marks belong to the answer: it is a transcript."""
    judging: Judging | None = None
    """Present where a served model may write the merged reply (`merge: judge`)."""

    @property
    def places(self) -> Literal["boxes", "points"] | None:
        """Return the field that holds objects with their places in the image, where results are such; else None."""
        first = next(iter(self.result.model_fields))
        return first if first in ("boxes", "points") else None  # type: ignore[return-value]

    @property
    def boxed(self) -> bool:
        return self.places == "boxes"

    @property
    def takes_phrases(self) -> bool:
        return self.text_field is not None and self.text_field.kind == "phrases"

    @property
    def min_phrases(self) -> int | None:
        """Return how many phrases a request must have; None for a task without, and where its field sets no bound."""
        return max(self._phrase_bounds("min_length"), default=None)

    @property
    def max_phrases(self) -> int | None:
        """Return how many phrases a request may have; None for a task without, and where its field sets no bound."""
        return min(self._phrase_bounds("max_length"), default=None)

    def _phrase_bounds(self, name: Literal["min_length", "max_length"]) -> list[int]:
        if self.text_field is None or not self.takes_phrases:
            return []
        metadata = self.request.model_fields[self.text_field.name].metadata
        return [bound for item in metadata if (bound := getattr(item, name, None))]

    def written(self, fields: Mapping[str, Any]) -> str:
        """Return what a client writes for these fields of a request, as one text; empty where it writes nothing."""
        return "".join(map(self.text_field.write, self.text_in(fields).values())) if self.text_field else ""

    def text_in(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return of a request's fields the one for what the client writes; empty without it."""
        return {name: fields[name] for name in fields if self.text_field is not None and name == self.text_field.name}

    def texts(self, request: Request) -> tuple[str, ...]:
        """Return what a request's client wrote beside the image, as texts: one, or phrases, or nothing."""
        if self.text_field is None:
            return ()
        names = (
            name for name, field in self.request.model_fields.items() if self.text_field.name in (name, field.alias)
        )
        value = getattr(request, next(names))
        return (value,) if isinstance(value, str) else tuple(value)
