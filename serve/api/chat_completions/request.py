"""The fields of a chat completion request: supported, accepted without effect, or refused by name."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from serve.api.chat_completions.messages import Message, Note, StrictModel, refused_field
from serve.api.chat_completions.tools import MAX_TOOLS, FunctionTool, ToolChoice
from serve.engines.json_schema import schema_text
from serve.limits import MAX_CHOICES, within
from serve.tasks.request import (
    MAX_MODELS,
    BudgetField,
    DeadlineField,
    EffortField,
    LeastAgreement,
    Name,
    Stop,
    TemplateArgsField,
)

MAX_TOKENS = 512
"""Default of max_tokens. Only the engine knows how much room the model's context leaves."""
MOST_TOKENS = 32_768
FLEX = "flex"
"""OpenAI's service tier for requests that may wait: our `priority: batch`."""
MAX_ALL_PARTS = 1024
"""Largest number of content parts in all messages."""
MAX_TEXT = 200_000
"""Largest number of characters in all messages; no served model has a longer context."""

SCHEMA_PARAM = "response_format.json_schema.schema"

Notes = Annotated[dict[str, Any], Field(max_length=16)]
"""Accepted and not used."""
Penalty = Annotated[float, Field(ge=-2, le=2)]


class StreamOptions(StrictModel):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = Field(default=None, description="Accepted; nothing is padded.")


class TextFormat(StrictModel):
    type: Literal["text"]


class JsonFormat(StrictModel):
    type: Literal["json_object"]


class JsonSchema(StrictModel):
    name: Name
    description: Annotated[str, Field(max_length=4096)] | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class SchemaFormat(StrictModel):
    type: Literal["json_schema"]
    json_schema: JsonSchema


def json_schema(wanted: TextFormat | JsonFormat | SchemaFormat | None) -> str | None:
    """Return a response format's schema as JSON text, for the engine; None for plain text. Raises BadRequest for an
    unsafe one."""
    if isinstance(wanted, JsonFormat):
        return '{"type":"object"}'
    return schema_text(wanted.json_schema.schema_, SCHEMA_PARAM) if isinstance(wanted, SchemaFormat) else None


class SharedFields(BaseModel):
    """The fields that a chat completion's request and a response's have in common, with the fields of a task."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: Name = Field(description="A model, a task (vqa), or a task with models (vqa:*, vqa:toy-llava).")
    temperature: float | None = Field(
        default=None, ge=0, le=2, description="1 for a model, as OpenAI has it; 0 for a task, as tasks have it."
    )
    top_p: float | None = Field(default=None, ge=0, le=1, description="0 is greedy, as temperature 0 is.")
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1 - MAX_CHOICES)
    stop: Stop | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None

    chat_template_kwargs: TemplateArgsField = None
    thinking_token_budget: BudgetField = None

    service_tier: Literal["auto", "default", "flex"] | None = Field(
        default=None, description="flex: behind everybody who waits for an answer, and refused sooner."
    )
    deadline_s: DeadlineField | None = None
    quorum: int | None = Field(default=None, ge=1, le=MAX_MODELS, description="Tasks only.")
    merge: Name | None = Field(default=None, description="Tasks only.")
    weights: dict[str, float] | None = Field(default=None, max_length=MAX_MODELS, description="Tasks only.")
    judge: Name | None = Field(default=None, description="caption and chat only.")
    min_agreement: LeastAgreement = None

    # Accepted without effect: they do not change a reply.
    user: Note | None = None
    metadata: Notes | None = None
    safety_identifier: Note | None = None
    prompt_cache_key: Note | None = None
    prompt_cache_retention: Note | None = None
    prompt_cache_options: Notes | None = None
    parallel_tool_calls: bool | None = None

    store: bool | None = Field(default=None, description="Accepted; nothing is kept.")

    moderation: refused_field() = None  # type: ignore[valid-type]
    # Fields of vLLM's own server, at the values that mean "off".
    top_k: refused_field(-1, 0) = None  # type: ignore[valid-type]
    min_p: refused_field(0) = None  # type: ignore[valid-type]
    min_tokens: refused_field(0) = None  # type: ignore[valid-type]
    repetition_penalty: refused_field(1) = None  # type: ignore[valid-type]
    best_of: refused_field(1) = None  # type: ignore[valid-type]
    use_beam_search: refused_field(False) = None  # type: ignore[valid-type]
    skip_special_tokens: refused_field(True) = None  # type: ignore[valid-type]
    echo: refused_field(False) = None  # type: ignore[valid-type]


class ChatCompletionRequest(SharedFields):
    """OpenAI's chat completion request, with the fields of a task."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=256)]
    max_completion_tokens: int | None = Field(default=None, ge=1, le=MOST_TOKENS)
    max_tokens: int | None = Field(
        default=None,
        ge=1,
        le=MOST_TOKENS,
        description=f"The same; {MAX_TOKENS} for a model, the task's own length else.",
    )
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES), within("max_choices")] | None = Field(
        default=None, description="Choices of one model; seeds count up."
    )
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logprobs: bool | None = Field(
        default=None, description="Of one model: n x max_tokens x (1 + top_logprobs) may be 100,000."
    )
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    response_format: Annotated[TextFormat | JsonFormat | SchemaFormat, Field(discriminator="type")] | None = None
    stream_options: StreamOptions | None = None

    reasoning_effort: EffortField = None
    include_reasoning: refused_field(True) = None  # type: ignore[valid-type]

    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS)] | None = Field(
        default=None, description='Of a model that calls functions; others take them with `tool_choice` "none" alone.'
    )
    tool_choice: ToolChoice | None = Field(
        default=None, description="required and a function's name hold the reply to a call."
    )
    function_call: refused_field("none", "auto") = None  # type: ignore[valid-type]
    functions: list[Any] | None = Field(
        default=None, description='Not supported: accepted where `function_call` is "none".'
    )
    modalities: refused_field(["text"]) = None  # type: ignore[valid-type]
    audio: refused_field() = None  # type: ignore[valid-type]
    logit_bias: refused_field({}) = None  # type: ignore[valid-type]
    prediction: refused_field() = None  # type: ignore[valid-type]
    verbosity: refused_field("medium") = None  # type: ignore[valid-type]
    web_search_options: refused_field() = None  # type: ignore[valid-type]

    @field_validator("messages", mode="before")
    @classmethod
    def _few_parts(cls, messages: Any) -> Any:
        """Raise ValueError for too many parts, before each is validated: 16,384 wrong ones take 0.1 s."""
        contents = (
            [message.get("content") for message in messages if isinstance(message, dict)]
            if isinstance(messages, list)
            else []
        )
        if sum(len(content) for content in contents if isinstance(content, list)) > MAX_ALL_PARTS:
            raise ValueError(f"at most {MAX_ALL_PARTS:,} content parts together")
        return messages

    @field_validator("functions")
    @classmethod
    def _not_wanted(cls, functions: list[Any] | None, info: ValidationInfo) -> list[Any] | None:
        if functions and info.data.get("function_call") != "none":
            raise PydanticCustomError("unsupported_parameter", "is not supported")
        return functions
