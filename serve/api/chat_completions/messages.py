"""OpenAI's messages as clients and frameworks write them, a history's among them."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

Text = Annotated[str, Field(max_length=100_000)]
Note = Annotated[str, Field(max_length=512)]
"""Text that is accepted and not used."""
MAX_PARTS = 64
"""Content parts of one message."""


def without(*accepted: Any) -> Any:
    """Return the type of a field that cannot be honoured: null and `accepted`, which ask for nothing, are taken."""

    def check(value: Any) -> Any:
        if value is not None and value not in accepted:
            raise PydanticCustomError("unsupported_parameter", "is not supported")
        return value

    return Annotated[Any, AfterValidator(check), Field(description="Not supported.")]


def unread(description: str) -> Any:
    """Return a field that is accepted whatever it holds, and never looked at."""
    return Field(default=None, description=description)


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Cached(Part):
    cache_control: Any = unread("Accepted, not read: what other servers should keep.")


class TextPart(Cached):
    type: Literal["text"]
    text: Text


class RefusalPart(Part):
    """A refusal that an assistant gave in place of an answer; it is read as its words."""

    type: Literal["refusal"]
    refusal: Text


class ImageUrl(Part):
    url: str = Field(description="data:image/png;base64,... (also JPEG, WEBP, GIF), or an https URL of a public host.")
    detail: Literal["auto", "low", "high", "original"] | None = Field(
        default=None, description="Accepted; every model sees the image at its own size."
    )


class ImagePart(Cached):
    type: Literal["image_url"]
    image_url: ImageUrl | str


class VideoUrl(Part):
    url: str = Field(description="data:video/mp4;base64,... (also WEBM, MOV, an animated GIF or WEBP).")


class VideoPart(Cached):
    """A film, as vLLM's own server takes it; OpenAI has no such part."""

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
    """A message with every field that it may have: clients that know one kind of message write all, as null."""

    content: Content
    name: Note | None = None
    refusal: without("") = None  # type: ignore[valid-type]
    annotations: without([]) = None  # type: ignore[valid-type]
    audio: without() = None  # type: ignore[valid-type]
    images: without([]) = None  # type: ignore[valid-type]
    tool_calls: without([]) = None  # type: ignore[valid-type]
    tool_call_id: without() = None  # type: ignore[valid-type]
    function_call: without() = None  # type: ignore[valid-type]
    parsed: without() = None  # type: ignore[valid-type]
    reasoning: without("") = None  # type: ignore[valid-type]
    reasoning_content: without("") = None  # type: ignore[valid-type]
    reasoning_details: without([]) = None  # type: ignore[valid-type]
    thinking_blocks: without([]) = None  # type: ignore[valid-type]
    provider_specific_fields: without({}) = None  # type: ignore[valid-type]


class InstructingMessage(AnyMessage):
    """A system, developer or user message."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]  # the last three: see `_kind`


class AssistantMessage(AnyMessage):
    """A reply of the history, as the clients' own objects write it. Its words are read: the content, or the refusal.

    A call of a tool is not: the tool's result is, where it follows.
    """

    role: Literal["assistant"]
    content: Content | None = None  # type: ignore[assignment]
    refusal: Text | None = None
    tool_calls: list[Any] | None = Field(
        default=None, max_length=128, description="Read for the names of the tools whose results follow."
    )
    function_call: dict[str, Any] | None = Field(default=None, description="Accepted, not read.")
    annotations: Any = unread("Accepted, not read.")
    parsed: Any = unread("Accepted, not read: openai-python's reading of the content.")
    reasoning: Any = unread("Accepted, not read: what another model thought before it spoke.")
    reasoning_content: Any = unread("The same.")
    reasoning_details: Any = unread("The same.")
    thinking_blocks: Any = unread("The same.")
    provider_specific_fields: Any = unread("Accepted, not read: LiteLLM's own.")


class ToolMessage(AnyMessage):
    """A tool's result in the history. It is read as the user's words: `Result of NAME: ...`."""

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
