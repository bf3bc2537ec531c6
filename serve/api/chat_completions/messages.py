"""OpenAI's messages, in all variants that clients and frameworks send."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

Text = Annotated[str, Field(max_length=100_000)]
Note = Annotated[str, Field(max_length=512)]
"""Text that is accepted and not used."""
MAX_PARTS = 64
"""Largest number of content parts in a message."""


def refused_field(*accepted: Any) -> Any:
    """Return the type of an unsupported field, which accepts only null and the values that have no effect."""

    def check(value: Any) -> Any:
        if value is not None and value not in accepted:
            raise PydanticCustomError("unsupported_parameter", "is not supported")
        return value

    return Annotated[Any, AfterValidator(check), Field(description="Not supported.")]


def ignored_field(description: str) -> Any:
    """Return a field that accepts any value and is never used."""
    return Field(default=None, description=description)


class StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Cached(StrictModel):
    cache_control: Any = ignored_field("Accepted, not read: what other servers should keep.")


class TextPart(Cached):
    type: Literal["text"]
    text: Text


class RefusalPart(StrictModel):
    """An assistant's refusal, which is used like text."""

    type: Literal["refusal"]
    refusal: Text


class ImageUrl(StrictModel):
    url: str = Field(description="data:image/png;base64,... (also JPEG, WEBP, GIF), or an https URL of a public host.")
    detail: Literal["auto", "low", "high", "original"] | None = Field(
        default=None, description="Accepted; every model sees the image at its own size."
    )


class ImagePart(Cached):
    type: Literal["image_url"]
    image_url: ImageUrl | str


class VideoUrl(StrictModel):
    url: str = Field(description="data:video/mp4;base64,... (also WEBM, MOV, an animated GIF or WEBP).")


class VideoPart(Cached):
    """A video, in the format of vLLM's own server; OpenAI has no such part."""

    type: Literal["video_url"]
    video_url: VideoUrl | str


Content = (
    Text
    | Annotated[
        list[Annotated[TextPart | RefusalPart | ImagePart | VideoPart, Field(discriminator="type")]],
        Field(max_length=MAX_PARTS),
    ]
)


class AnyMessage(Cached):
    """A message with the fields of all roles: some clients send all of them as null."""

    content: Content
    name: Note | None = None
    refusal: refused_field("") = None  # type: ignore[valid-type]
    annotations: refused_field([]) = None  # type: ignore[valid-type]
    audio: refused_field() = None  # type: ignore[valid-type]
    images: refused_field([]) = None  # type: ignore[valid-type]
    tool_calls: refused_field([]) = None  # type: ignore[valid-type]
    tool_call_id: refused_field() = None  # type: ignore[valid-type]
    function_call: refused_field() = None  # type: ignore[valid-type]
    parsed: refused_field() = None  # type: ignore[valid-type]
    reasoning: refused_field("") = None  # type: ignore[valid-type]
    reasoning_content: refused_field("") = None  # type: ignore[valid-type]
    reasoning_details: refused_field([]) = None  # type: ignore[valid-type]
    thinking_blocks: refused_field([]) = None  # type: ignore[valid-type]
    provider_specific_fields: refused_field({}) = None  # type: ignore[valid-type]


class InstructingMessage(AnyMessage):
    """A system, developer or user message."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]  # the last three: see `_kind`


class AssistantMessage(AnyMessage):
    """An assistant message, as client libraries serialise it. Its content or refusal is used.

    A model that calls functions is told of its calls; to others only the results are, where they follow.
    """

    role: Literal["assistant"]
    content: Content | None = None  # type: ignore[assignment]
    refusal: Text | None = None
    tool_calls: list[Any] | None = Field(
        default=None, max_length=128, description="Calls of functions whose results follow."
    )
    function_call: dict[str, Any] | None = Field(default=None, description="Accepted, not read.")
    annotations: Any = ignored_field("Accepted, not read.")
    parsed: Any = ignored_field("Accepted, not read: openai-python's reading of the content.")
    reasoning: Any = ignored_field("Accepted, not read: what another model thought before it spoke.")
    reasoning_content: Any = ignored_field("The same.")
    reasoning_details: Any = ignored_field("The same.")
    thinking_blocks: Any = ignored_field("The same.")
    provider_specific_fields: Any = ignored_field("Accepted, not read: LiteLLM's own.")


class ToolMessage(AnyMessage):
    """A tool's result. For a model that calls no functions it becomes a user turn: `Result of NAME: ...`."""

    role: Literal["tool", "function"]
    tool_call_id: Note | None = None


def _kind(message: Any) -> str:
    role = message.get("role") if isinstance(message, dict) else getattr(message, "role", None)
    return role if role in ("assistant", "tool") else "tool" if role == "function" else "instructing"


Message = Annotated[
    Annotated[InstructingMessage, Tag("instructing")]
    | Annotated[AssistantMessage, Tag("assistant")]
    | Annotated[ToolMessage, Tag("tool")],
    Discriminator(_kind),
]
