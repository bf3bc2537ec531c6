"""What OpenAI clients send, field by field: honoured, harmless, or refused by name."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from serve.tasks.base import MAX_MODELS, Name, Stop

MAX_TOKENS = 512
"""The length of a reply whose request names none. How much a model's context leaves is known to its engine only."""
MAX_CHOICES = 8
FLEX = "flex"
"""OpenAI's service tier for what may wait: our `priority: batch`."""
MAX_TEXT = 200_000
"""Characters of all messages together: no model served here reads so many."""

Text = Annotated[str, Field(max_length=100_000)]
Note = Annotated[str, Field(max_length=512)]
"""What is taken and not used."""
Notes = Annotated[dict[str, Any], Field(max_length=16)]
Penalty = Annotated[float, Field(ge=-2, le=2)]


def only(*accepted: Any) -> Callable[[Any], Any]:
    """A check for a field that we cannot honour: values that ask for nothing are accepted, all others refused."""

    def check(value: Any) -> Any:
        if value not in accepted:
            raise PydanticCustomError("unsupported_parameter", "is not supported")
        return value

    return check


def _without(*accepted: Any) -> Any:
    return Annotated[Any, AfterValidator(only(None, *accepted)), Field(description="Not supported.")]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TextPart(Part):
    type: Literal["text"]
    text: Text


class ImageUrl(Part):
    url: str = Field(description="data:image/png;base64,... (also JPEG, WEBP, GIF), or an https URL of a public host.")
    detail: Literal["auto", "low", "high", "original"] | None = Field(
        default=None, description="Accepted; every model sees the image at its own size."
    )


class ImagePart(Part):
    type: Literal["image_url"]
    image_url: ImageUrl | str


class VideoUrl(Part):
    url: str = Field(description="data:video/mp4;base64,... (also WEBM, MOV, an animated GIF or WEBP).")


class VideoPart(Part):
    """A film, as vLLM's own server takes it; OpenAI has no such part."""

    type: Literal["video_url"]
    video_url: VideoUrl | str


class Message(Part):
    """One message. What an assistant's message of OpenAI's carries besides its text is accepted when empty."""

    role: Literal["system", "developer", "user", "assistant"]
    content: (
        Text
        | Annotated[
            list[Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]], Field(max_length=64)
        ]
    )
    name: Note | None = None
    refusal: _without("") = None  # type: ignore[valid-type]
    annotations: _without([]) = None  # type: ignore[valid-type]
    audio: _without() = None  # type: ignore[valid-type]
    tool_calls: _without([]) = None  # type: ignore[valid-type]
    function_call: _without() = None  # type: ignore[valid-type]


class StreamOptions(Part):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = Field(default=None, description="Accepted; nothing is padded.")


class TextFormat(Part):
    type: Literal["text"]


class JsonFormat(Part):
    type: Literal["json_object"]


class JsonSchema(Part):
    name: Name
    description: Annotated[str, Field(max_length=4096)] | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class SchemaFormat(Part):
    type: Literal["json_schema"]
    json_schema: JsonSchema


class ChatCompletionRequest(BaseModel):
    """OpenAI's chat completion request, with a task's own fields beside it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: Name = Field(description="A model, a task (vqa), or a task with models (vqa:*, vqa:toy-llava).")
    messages: Annotated[list[Message], Field(min_length=1, max_length=256)]
    max_completion_tokens: int | None = Field(default=None, ge=1, le=32_768)
    max_tokens: int | None = Field(
        default=None, ge=1, le=32_768, description=f"The same; {MAX_TOKENS} for a model, the task's own length else."
    )
    temperature: float | None = Field(
        default=None, ge=0, le=2, description="1 for a model, as OpenAI has it; 0 for a task, as tasks have it."
    )
    top_p: float | None = Field(default=None, ge=0, le=1, description="0 is greedy, as temperature 0 is.")
    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES, description="Choices of one model; seeds count up.")
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1 - MAX_CHOICES)
    stop: Stop | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    response_format: Annotated[TextFormat | JsonFormat | SchemaFormat, Field(discriminator="type")] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    service_tier: Literal["auto", "default", "flex"] | None = Field(
        default=None, description="flex: behind everybody who waits for an answer, and refused sooner."
    )
    deadline_s: float | None = Field(default=None, gt=0, le=600)
    quorum: int | None = Field(default=None, ge=1, le=MAX_MODELS, description="Tasks only.")
    merge: Name | None = Field(default=None, description="Tasks only.")
    weights: dict[str, float] | None = Field(default=None, max_length=MAX_MODELS, description="Tasks only.")
    judge: Name | None = Field(default=None, description="caption and chat only.")

    # Harmless: they ask for nothing that changes a reply.
    user: Note | None = None
    metadata: Notes | None = None
    safety_identifier: Note | None = None
    prompt_cache_key: Note | None = None
    prompt_cache_retention: Note | None = None
    prompt_cache_options: Notes | None = None
    parallel_tool_calls: bool | None = None

    store: _without(False) = None  # type: ignore[valid-type]
    tools: _without([]) = None  # type: ignore[valid-type]
    tool_choice: _without("none", "auto") = None  # type: ignore[valid-type]
    functions: _without([]) = None  # type: ignore[valid-type]
    function_call: _without("none", "auto") = None  # type: ignore[valid-type]
    modalities: _without(["text"]) = None  # type: ignore[valid-type]
    audio: _without() = None  # type: ignore[valid-type]
    moderation: _without() = None  # type: ignore[valid-type]
    logit_bias: _without({}) = None  # type: ignore[valid-type]
    prediction: _without() = None  # type: ignore[valid-type]
    reasoning_effort: _without("none") = None  # type: ignore[valid-type]
    verbosity: _without("medium") = None  # type: ignore[valid-type]
    web_search_options: _without() = None  # type: ignore[valid-type]
    # What clients of vLLM's own server send, at the values that mean "off".
    top_k: _without(-1, 0) = None  # type: ignore[valid-type]
    min_p: _without(0) = None  # type: ignore[valid-type]
    min_tokens: _without(0) = None  # type: ignore[valid-type]
    repetition_penalty: _without(1) = None  # type: ignore[valid-type]
    best_of: _without(1) = None  # type: ignore[valid-type]
    use_beam_search: _without(False) = None  # type: ignore[valid-type]
    skip_special_tokens: _without(True) = None  # type: ignore[valid-type]
    echo: _without(False) = None  # type: ignore[valid-type]
