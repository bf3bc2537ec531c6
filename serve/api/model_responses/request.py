"""The fields of a request for a response, and their translation to a chat completion's."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from serve.api.chat_completions.messages import (
    MAX_PARTS,
    Note,
    RefusalPart,
    StrictModel,
    Text,
    ignored_field,
    refused_field,
)
from serve.api.chat_completions.request import MOST_TOKENS, JsonFormat, SharedFields, TextFormat
from serve.api.chat_completions.tools import MAX_TOOLS, FunctionName, FunctionReference
from serve.errors import BadRequest
from serve.tasks.request import EffortField, Name

MAX_ITEMS = 256


class InputText(StrictModel):
    type: Literal["input_text", "output_text"]
    text: Text
    annotations: Any = ignored_field("Accepted, not read.")
    logprobs: Any = ignored_field("Accepted, not read.")


class InputImage(StrictModel):
    type: Literal["input_image"]
    file_id: refused_field() = None  # type: ignore[valid-type]
    image_url: str = Field(description="data:image/png;base64,... or an https URL of a public host.")
    detail: Literal["auto", "low", "high", "original"] | None = Field(
        default=None, description="Accepted; every model sees the image at its own size."
    )


Part = Annotated[InputText | InputImage | RefusalPart, Field(discriminator="type")]
Parts = Annotated[list[Part], Field(max_length=MAX_PARTS)]


class ConversationItem(StrictModel):
    """An item of the input. Its id and status, where it was an output, are accepted and not read."""

    id: Note | None = None
    status: Note | None = None


class MessageItem(ConversationItem):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Text | Parts
    phase: Note | None = None


class FunctionCallItem(ConversationItem):
    """A model's call of a function, as an earlier response had it."""

    type: Literal["function_call"]
    call_id: Note
    name: Note
    arguments: Text
    namespace: Note | None = None


class FunctionOutputItem(ConversationItem):
    """The result of a function."""

    type: Literal["function_call_output"]
    call_id: Note
    output: Text | Annotated[list[InputText], Field(max_length=MAX_PARTS)]


class ReasoningItem(ConversationItem):
    """The reasoning before an earlier answer: accepted and not read."""

    type: Literal["reasoning"]
    summary: Any = None
    content: Any = None
    encrypted_content: Any = None


def _kind(item: Any) -> str:
    kind = item.get("type") if isinstance(item, dict) else getattr(item, "type", None)
    return "message" if kind is None else str(kind)


InputItem = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(
        _kind,
        custom_error_type="unknown_item",
        custom_error_message="type must be message, function_call, function_call_output or reasoning",
    ),
]


class FlatSchemaFormat(StrictModel):
    type: Literal["json_schema"]
    name: Name
    schema_: dict[str, Any] = Field(alias="schema")
    description: Annotated[str, Field(max_length=4096)] | None = None
    strict: bool | None = None


class TextSettings(StrictModel):
    format: Annotated[TextFormat | JsonFormat | FlatSchemaFormat, Field(discriminator="type")] | None = None
    verbosity: refused_field("medium") = None  # type: ignore[valid-type]


class ReasoningWishes(StrictModel):
    effort: EffortField = None
    summary: Any = ignored_field("Accepted; reasoning is never summarised.")
    generate_summary: Any = ignored_field("The same.")


class StreamSettings(StrictModel):
    include_obfuscation: bool | None = Field(default=None, description="Accepted; nothing is padded.")


class FunctionItem(StrictModel):
    """A function that the model may call."""

    type: Literal["function"]
    name: FunctionName
    description: Annotated[str, Field(max_length=10_000)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedFunction(FunctionReference):
    type: Literal["function"]


class ResponseRequest(SharedFields):
    """OpenAI's request for a response, with the fields of a task."""

    input: Text | Annotated[list[InputItem], Field(min_length=1, max_length=MAX_ITEMS)]
    instructions: Text | None = Field(default=None, description="A system message, before the input's.")
    max_output_tokens: int | None = Field(default=None, ge=1, le=MOST_TOKENS)
    text: TextSettings | None = None
    reasoning: ReasoningWishes | None = None
    stream_options: StreamSettings | None = None
    include: Annotated[list[Literal["reasoning.encrypted_content"]], Field(max_length=8)] | None = Field(
        default=None, description="Accepted; reasoning is in the output as text."
    )

    tools: Annotated[list[FunctionItem], Field(max_length=MAX_TOOLS)] | None = Field(
        default=None, description='Of a model that calls functions; others take them with `tool_choice` "none" alone.'
    )
    tool_choice: Literal["none", "auto", "required"] | NamedFunction | None = Field(
        default=None, description="required and a function's name hold the reply to a call."
    )

    previous_response_id: refused_field() = None  # type: ignore[valid-type]
    conversation: refused_field() = None  # type: ignore[valid-type]
    prompt: refused_field() = None  # type: ignore[valid-type]
    background: refused_field(False) = None  # type: ignore[valid-type]
    truncation: refused_field("disabled") = None  # type: ignore[valid-type]
    top_logprobs: refused_field(0) = None  # type: ignore[valid-type]
    max_tool_calls: refused_field() = None  # type: ignore[valid-type]
    context_management: refused_field() = None  # type: ignore[valid-type]


def chat_fields(request: ResponseRequest, messages: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the fields of the chat completion that answers a request, without those that are None."""
    fields = {name: getattr(request, name) for name in SharedFields.model_fields}
    fields |= {"messages": messages, "max_completion_tokens": request.max_output_tokens}
    if request.tools:
        functions = [tool.model_dump(exclude={"type"}) for tool in request.tools]
        fields["tools"] = [{"type": "function", "function": function} for function in functions]
    fields["tool_choice"] = request.tool_choice
    if isinstance(request.tool_choice, NamedFunction):
        fields["tool_choice"] = {"type": "function", "function": {"name": request.tool_choice.name}}
    if request.chat_template_kwargs is not None:
        fields["chat_template_kwargs"] = request.chat_template_kwargs.model_dump()
    if request.reasoning is not None:
        fields["reasoning_effort"] = request.reasoning.effort
    if request.text is not None and request.text.format is not None:
        wanted = request.text.format.model_dump(by_alias=True)
        kind = wanted.pop("type")
        fields["response_format"] = {"type": kind, **({"json_schema": wanted} if wanted else {})}
    return {name: value for name, value in fields.items() if value is not None}


def messages_of_chat(request: ResponseRequest) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the input as a chat's messages, and the path of each in the request. Raises BadRequest."""
    messages: list[dict[str, Any]] = []
    paths: list[str] = []

    def add(path: str, role: str, content: Any, **more: Any) -> None:
        messages.append({"role": role, "content": content, **more})
        paths.append(path)

    if request.instructions:
        add("instructions", "system", request.instructions)
    if isinstance(request.input, str):
        add("input", "user", request.input)
        return messages, paths
    for at, item in enumerate(request.input):
        path = f"input[{at}]"
        if isinstance(item, MessageItem):
            add(path, item.role, item.content if isinstance(item.content, str) else _parts(item.content))
        elif isinstance(item, FunctionCallItem):
            call = {"id": item.call_id, "type": "function"}
            call |= {"function": {"name": item.name, "arguments": item.arguments}}  # type: ignore[dict-item]
            if not messages or messages[-1]["role"] != "assistant":
                add(path, "assistant", None)
            messages[-1].setdefault("tool_calls", []).append(call)
        elif isinstance(item, FunctionOutputItem):
            output = item.output if isinstance(item.output, str) else _parts(item.output)
            add(path, "tool", output, tool_call_id=item.call_id)
    if not messages:
        raise BadRequest("There is no message in the input.", param="input")
    return messages, paths


def _parts(parts: Any) -> list[dict[str, Any]]:
    """Return content parts as a chat's."""
    written: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, InputText):
            written.append({"type": "text", "text": part.text})
        elif isinstance(part, InputImage):
            written.append({"type": "image_url", "image_url": part.image_url})
        else:
            written.append(part.model_dump())
    return written
