"""The parts of a task: its request, its result, and the rules that merge several replies into one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SerializeAsAny, model_validator

from serve.engines.base import Generation, ReasoningOptions
from serve.errors import BadRequest, ParseError
from serve.limits import MAX_DEADLINE_S, within
from serve.media.image import ImageField
from serve.media.video import VideoField

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Name = Annotated[str, Field(min_length=1, max_length=200)]

Priority = Literal["interactive", "batch"]

CUT = "The reply was cut by max_tokens before its first whole word."

MAX_MODELS = 64
"""Models that one request may ask."""

MAX_STOP = 256
"""Characters of one stop sequence."""


def _refuse_empty(stop: str | list[str]) -> str | list[str]:
    if stop == "" or "" in (stop if isinstance(stop, list) else ()):
        raise ValueError("a stop sequence must not be empty")
    return stop


Stop = Annotated[
    Annotated[str, Field(max_length=MAX_STOP)]
    | Annotated[list[Annotated[str, Field(max_length=MAX_STOP)]], Field(max_length=4)],
    AfterValidator(_refuse_empty),
]
"""One to four texts at which a reply ends; they are not part of it."""

JudgeName = Annotated[
    Name | None, Field(description='Which model judges where "merge" is "judge"; the first that can when left out.')
]

LeastAgreement = Annotated[
    Probability | None,
    Field(description="Where the models agree less, 0..1, the merged reply has an error in place of its result."),
]


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class TemplateArgs(BaseModel):
    """The variables of a model's chat template that a request may set."""

    model_config = ConfigDict(extra="forbid", strict=True)

    enable_thinking: bool | None = None


DeadlineField = Annotated[float, Field(gt=0, le=MAX_DEADLINE_S), within("max_deadline_s")]
EffortField = Annotated[
    Effort | None,
    Field(description="Of models that reason: none turns it off, everything else on, as a level where they have some."),
]
TemplateArgsField = Annotated[
    TemplateArgs | None, Field(description="vLLM's: `enable_thinking` turns reasoning on or off.")
]
BudgetField = Annotated[
    int | None,
    Field(ge=0, le=32_768, description="vLLM's: tokens after which reasoning is ended, so that the answer begins."),
]


def reasoning_options(request: Any) -> ReasoningOptions:
    """Return what a request of a task, or of a chat completion, asks of models that reason.

    Raises BadRequest where it turns reasoning both on and off.
    """
    arguments = request.chat_template_kwargs
    enabled = None if arguments is None else arguments.enable_thinking
    options = ReasoningOptions(request.reasoning_effort, enabled, request.thinking_token_budget)
    if enabled is not None and options.on is not enabled:
        raise BadRequest(
            f"reasoning_effort {request.reasoning_effort!r} contradicts it.",
            param="chat_template_kwargs.enable_thinking",
        )
    return options


def _from_video() -> Any:
    """Leave the image out: there is a video, and `Request._set_still` takes its first frame."""
    return None


class Request(BaseModel):
    """A task to do with one image or one video. Unknown fields are refused by name."""

    model_config = ConfigDict(
        extra="forbid",
        arbitrary_types_allowed=True,
        json_schema_extra={"oneOf": [{"required": ["image"]}, {"required": ["video"]}]},
    )

    image: ImageField = Field(
        default_factory=_from_video,
        description="A PNG, JPEG, WEBP or GIF as a data URL, or an https URL of a public host, fetched once for all "
        "models. Of a video it is the first frame, once it is decoded.",
    )
    video: VideoField | None = Field(
        default=None, description="A data URL, in place of the image: for models that take it."
    )
    models: Annotated[list[Name], Field(min_length=1, max_length=MAX_MODELS)] | None = Field(
        default=None, description="Which models to ask; all that can do the task when left out."
    )
    deadline_s: DeadlineField = Field(default=60.0, description="Seconds until models that are still speaking are cut.")
    quorum: int | None = Field(
        default=None, ge=1, le=MAX_MODELS, description="Merge as soon as this many models answered."
    )
    merge: Name | None = Field(default=None, description="Merge method; the task's own when left out.")
    weights: dict[str, Annotated[float, Field(ge=0, le=1000)]] | None = Field(
        default=None,
        max_length=MAX_MODELS,
        description="How much each model's reply counts in the merge; the model's own when left out.",
    )
    min_agreement: LeastAgreement = None
    temperature: float = Field(default=0.0, ge=0, le=2)
    max_tokens: int | None = Field(default=None, ge=1, le=4096)
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    top_p: float = Field(default=1.0, ge=0, le=1, description="0 takes the likeliest token, as temperature 0 does.")
    stop: Stop | None = Field(default=None, description="A text, or up to four, at which every model's reply ends.")
    ignore_eos: bool = Field(
        default=False, description="Speak on to max_tokens, past the model's own end: for measuring."
    )
    reasoning_effort: EffortField = None
    chat_template_kwargs: TemplateArgsField = None
    thinking_token_budget: BudgetField = None
    priority: Priority = Field(
        default="interactive", description="batch: behind everybody who waits for an answer, and refused sooner."
    )
    stream: bool = False

    @model_validator(mode="before")
    @classmethod
    def _require_image_or_video(cls, given: Any) -> Any:
        """Raise BadRequest for both and for neither, before anything is decoded."""
        if not isinstance(given, Mapping):
            return given
        if given.get("video") is None:
            if "image" not in given:
                raise BadRequest("image is required.", param="image", code="missing_required_parameter")
        elif given.get("image") is not None:
            raise BadRequest("Give an image or a video, not both.", param="video")
        else:
            return {name: value for name, value in given.items() if name != "image"}
        return given

    @model_validator(mode="after")
    def _set_still(self) -> Self:
        if self.video is not None and self.video.decoded:
            self.image = self.video.first_frame()
        return self


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

Event = Waiting | Delta | Reply | Merged
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
    def max_phrases(self) -> int | None:
        """Return how many phrases a request may have; None for a task without, and where its field sets no bound."""
        if self.text_field is None or not self.takes_phrases:
            return None
        metadata = self.request.model_fields[self.text_field.name].metadata
        return min((bound for item in metadata if (bound := getattr(item, "max_length", 0))), default=None)

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
