"""What OpenAI clients send, field by field: honoured, harmless, or refused by name."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from serve.api.chat_completions.messages import Message, Note, Part, without
from serve.tasks.base import MAX_MODELS, Name, Stop

MAX_TOKENS = 512
"""The length of a reply whose request names none. How much a model's context leaves is known to its engine only."""
MAX_CHOICES = 8
FLEX = "flex"
"""OpenAI's service tier for what may wait: our `priority: batch`."""
MAX_ALL_PARTS = 1024
"""Content parts of all messages together."""
MAX_TEXT = 200_000
"""Characters of all messages together: no model served here reads so many."""

Notes = Annotated[dict[str, Any], Field(max_length=16)]
"""What is accepted and not used."""
Penalty = Annotated[float, Field(ge=-2, le=2)]


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
    logprobs: bool | None = Field(
        default=None, description="Of one model: n x max_tokens x (1 + top_logprobs) may be 100,000."
    )
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

    store: bool | None = Field(default=None, description="Accepted; nothing is kept.")

    tool_choice: without("none", "auto") = None  # type: ignore[valid-type]
    tools: list[Any] | None = Field(
        default=None, description='No model here calls tools: accepted where `tool_choice` is "none", refused else.'
    )
    function_call: without("none", "auto") = None  # type: ignore[valid-type]
    functions: list[Any] | None = Field(default=None, description='The same, with `function_call` "none".')
    modalities: without(["text"]) = None  # type: ignore[valid-type]
    audio: without() = None  # type: ignore[valid-type]
    moderation: without() = None  # type: ignore[valid-type]
    logit_bias: without({}) = None  # type: ignore[valid-type]
    prediction: without() = None  # type: ignore[valid-type]
    reasoning_effort: without("none") = None  # type: ignore[valid-type]
    verbosity: without("medium") = None  # type: ignore[valid-type]
    web_search_options: without() = None  # type: ignore[valid-type]
    # What clients of vLLM's own server send, at the values that mean "off".
    top_k: without(-1, 0) = None  # type: ignore[valid-type]
    min_p: without(0) = None  # type: ignore[valid-type]
    min_tokens: without(0) = None  # type: ignore[valid-type]
    repetition_penalty: without(1) = None  # type: ignore[valid-type]
    best_of: without(1) = None  # type: ignore[valid-type]
    use_beam_search: without(False) = None  # type: ignore[valid-type]
    skip_special_tokens: without(True) = None  # type: ignore[valid-type]
    echo: without(False) = None  # type: ignore[valid-type]

    @field_validator("messages", mode="before")
    @classmethod
    def _few_parts(cls, messages: Any) -> Any:
        """Raise ValueError for too many, before each is looked at: 16,384 wrong ones take a tenth of a second."""
        contents = (
            [message.get("content") for message in messages if isinstance(message, dict)]
            if isinstance(messages, list)
            else []
        )
        if sum(len(content) for content in contents if isinstance(content, list)) > MAX_ALL_PARTS:
            raise ValueError(f"at most {MAX_ALL_PARTS:,} content parts together")
        return messages

    @field_validator("tools", "functions")
    @classmethod
    def _not_wanted(cls, tools: list[Any] | None, info: ValidationInfo) -> list[Any] | None:
        choice = info.data.get({"tools": "tool_choice", "functions": "function_call"}[info.field_name or ""])
        if tools and choice != "none":
            raise PydanticCustomError("unsupported_parameter", "is not supported")
        return tools
