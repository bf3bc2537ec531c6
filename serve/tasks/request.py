"""The fields of a task's request that all tasks share."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from serve.engines.base import ReasoningOptions
from serve.errors import BadRequest
from serve.limits import MAX_DEADLINE_S, within
from serve.media.image import ImageField
from serve.media.video import VideoField

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Name = Annotated[str, Field(min_length=1, max_length=200)]

Priority = Literal["interactive", "batch"]

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
