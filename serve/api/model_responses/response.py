"""OpenAI's response object, complete and as the events of a stream."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from serve.api.chat_completions.request import StreamOptions
from serve.api.chat_completions.response import Choice, CompletionEvents, CompletionHead, FinishReason
from serve.api.model_responses.request import NamedFunction, ResponseRequest
from serve.api.responses import encode_json, sse_event
from serve.engines.base import ToolCallPart
from serve.tasks.reply import Usage

Status = Literal["in_progress", "completed", "incomplete"]
Kind = Literal["reasoning", "message", "call"]


class OutputUsage(BaseModel):
    """Token counts, as a response names them. Its details are not counted."""

    input_tokens: int
    input_tokens_details: dict[str, int] = {"cached_tokens": 0}
    output_tokens: int
    output_tokens_details: dict[str, int] = {"reasoning_tokens": 0}
    total_tokens: int


class Response(BaseModel):
    """OpenAI's response object, with the request's fields that clients read in it."""

    model_config = ConfigDict(protected_namespaces=())

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Status
    error: None = None
    incomplete_details: dict[str, str] | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    metadata: dict[str, Any]
    model: str
    output: list[dict[str, Any]] = Field(
        description="Items of type reasoning, message and function_call, as OpenAI has them."
    )
    parallel_tool_calls: bool
    previous_response_id: None = None
    reasoning: dict[str, Any]
    service_tier: str | None = None
    store: Literal[False] = False
    temperature: float | None = None
    text: dict[str, Any]
    tool_choice: Any
    tools: list[Any]
    top_p: float | None = None
    truncation: Literal["disabled"] = "disabled"
    usage: OutputUsage | None = None
    user: str | None = None
    diptych: dict[str, Any] | None = Field(
        default=None,
        exclude_if=lambda about: about is None,
        description="Where `model` named a task: about the merged reply, and with `vqa:*` each model's, as `replies`.",
    )


@dataclass(frozen=True)
class ResponseHead(CompletionHead):
    """The fields that the object of a response has from its request."""

    request: ResponseRequest = field(kw_only=True)

    @property
    def id(self) -> str:
        return f"resp_{self.request_id}"

    def completion(self, choices: list[Choice], usage: Usage) -> Response:
        first, others = choices[0], choices[1:]
        items = [self.reasoning_item(first.message.reasoning)] if first.message.reasoning else []
        status = _status(first.finish_reason)
        calls = first.message.tool_calls or []
        if first.message.content or not calls:
            items.append(self.message_item(first.message.content or "", status))
        items += [self.call_item(call.id, call.function.name, call.function.arguments, status) for call in calls]
        about = first.diptych
        if others:
            replies = [
                _reply(choice.diptych, choice.message.content or "", choice.message.reasoning) for choice in others
            ]
            about = {**(about or {}), "replies": replies}
        return self.response(items, status, usage, about)

    def events(self, options: StreamOptions | None, usage: Callable[[], Usage]) -> CompletionEvents:
        return ResponseEvents(self, usage)

    def response(
        self,
        items: list[dict[str, Any]],
        status: Status,
        usage: Usage | None = None,
        about: dict[str, Any] | None = None,
    ) -> Response:
        """Return the object. about: its `diptych`."""
        request = self.request
        counts = None if usage is None else OutputUsage(
            input_tokens=usage.prompt_tokens, output_tokens=usage.completion_tokens, total_tokens=usage.total_tokens
        )  # fmt: skip
        wanted, choice = None if request.text is None else request.text.format, request.tool_choice
        return Response(
            id=self.id,
            created_at=self.created,
            status=status,
            incomplete_details={"reason": "max_output_tokens"} if status == "incomplete" else None,
            instructions=request.instructions,
            max_output_tokens=request.max_output_tokens,
            metadata=request.metadata or {},
            model=self.model,
            output=items,
            parallel_tool_calls=request.parallel_tool_calls is not False,
            reasoning={"effort": None if request.reasoning is None else request.reasoning.effort, "summary": None},
            service_tier=request.service_tier,
            temperature=request.temperature,
            text={"format": {"type": "text"} if wanted is None else wanted.model_dump(by_alias=True)},
            tool_choice=choice.model_dump() if isinstance(choice, NamedFunction) else choice or "auto",
            tools=[tool.model_dump() for tool in request.tools or []],
            top_p=request.top_p,
            usage=counts,
            user=request.user,
            diptych=about,
        )

    def item_id(self, kind: Literal["reasoning", "message"], at: int) -> str:
        """Return the id of an item. at: how many items of its kind come before it."""
        return f"{'msg' if kind == 'message' else 'rs'}_{self.request_id}{f'_{at}' if at else ''}"

    def message_item(self, text: str | None, status: Status, at: int = 0) -> dict[str, Any]:
        """Return the output's message. text: None for one that has no content yet. at: as for `item_id`."""
        content = [] if text is None else [_text_part(text)]
        return {
            "id": self.item_id("message", at),
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": content,
        }

    def call_item(self, call: str, name: str, arguments: str, status: Status) -> dict[str, Any]:
        """Return a call of a function. call: its id, by which its result is given."""
        item = {"id": f"fc_{call}", "type": "function_call", "call_id": call, "status": status}
        return item | {"name": name, "arguments": arguments}

    def reasoning_item(self, text: str | None, at: int = 0) -> dict[str, Any]:
        """Return what the model wrote before its answer. text: None for one that has no content yet."""
        content = [] if text is None else [{"type": "reasoning_text", "text": text}]
        return {"id": self.item_id("reasoning", at), "type": "reasoning", "summary": [], "content": content}


class ResponseEvents:
    """A writer of a response's events, each with its number. Choice 0 is the output; others are told at the end."""

    def __init__(self, head: ResponseHead, usage: Callable[[], Usage]) -> None:
        self.head, self.usage = head, usage
        self._number = 0
        self._done: list[dict[str, Any]] = []
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._blank = ""
        """Blanks after a call: they are of a message only where other text follows."""
        self._open: Kind | None = None
        self._at = 0
        """Items of the open one's kind before it."""
        self._call: tuple[ToolCallPart, list[str]] | None = None
        """The first part of the call that is open, and its arguments so far."""
        self._status: Status = "completed"
        self._about: dict[str, Any] | None = None
        self._replies: dict[int, tuple[list[str], list[str]]] = {}
        self._replied: dict[int, dict[str, Any]] = {}

    def open(self, choices: Sequence[dict[str, Any]]) -> bytes:
        """Open the response."""
        self._replies = {index: ([], []) for index in range(1, len(choices))}
        begun = self.head.response([], "in_progress").model_dump(mode="json")
        return self._event("response.created", response=begun) + self._event("response.in_progress", response=begun)

    def text(self, index: int, text: str, **more: Any) -> bytes:
        if index:
            self._replies[index][0].append(text)
            return b""
        text, self._blank = self._blank + text, ""
        if not text or (self._call is not None and self._open != "message" and text.isspace()):
            self._blank = text
            return b""
        data = self._opened("message")
        self._text.append(text)
        return data + self._event("response.output_text.delta", **self._place("message"), delta=text, logprobs=[])

    def reasoning(self, index: int, text: str) -> bytes:
        if index:
            self._replies[index][1].append(text)
            return b""
        data = self._opened("reasoning")
        self._reasoning.append(text)
        return data + self._event("response.reasoning_text.delta", **self._place("reasoning"), delta=text)

    def tool_calls(self, index: int, parts: Sequence[ToolCallPart]) -> bytes:
        data = b""
        for part in parts:
            if part.id:
                data += self._closed()
                self._open, self._call, self._blank = "call", (part, []), ""
                item = self.head.call_item(part.id, part.name, "", "in_progress")
                data += self._event("response.output_item.added", output_index=len(self._done), item=item)
            if part.arguments and self._call is not None:
                self._call[1].append(part.arguments)
                place = self._call_place(self._call[0])
                data += self._event("response.function_call_arguments.delta", **place, delta=part.arguments)
        return data

    def finish(self, index: int, reason: FinishReason, **more: Any) -> bytes:
        about: dict[str, Any] | None = more.get("diptych")
        if index:
            text, reasoning = map("".join, self._replies[index])
            self._replied[index] = _reply(about, text, reasoning or None)
            return b""
        self._status, self._about = _status(reason), about
        data = b"" if self._call is not None else self._opened("message")  # an empty reply is a message, too
        return data + self._closed()

    def last(self) -> bytes:
        about = self._about
        if self._replied:
            about = {**(about or {}), "replies": [self._replied[index] for index in sorted(self._replied)]}
        whole = self.head.response(self._done, self._status, self.usage(), about)
        return self._event(f"response.{self._status}", response=whole.model_dump(mode="json"))

    def _opened(self, kind: Literal["reasoning", "message"]) -> bytes:
        """Open the item of a kind, after closing another; empty where it is open."""
        if self._open == kind:
            return b""
        data, self._open = self._closed(), kind
        at = self._at = sum(item["type"] == kind for item in self._done)
        empty = (
            self.head.message_item(None, "in_progress", at) if kind == "message" else self.head.reasoning_item(None, at)
        )
        data += self._event("response.output_item.added", output_index=len(self._done), item=empty)
        if kind == "message":
            data += self._event("response.content_part.added", **self._place(kind), part=_text_part(""))
        return data

    def _closed(self) -> bytes:
        """Close the open item; empty where there is none."""
        kind, data = self._open, b""
        if kind is None:
            return b""
        if kind == "message":
            text = "".join(self._text)
            data += self._event("response.output_text.done", **self._place(kind), text=text, logprobs=[])
            data += self._event("response.content_part.done", **self._place(kind), part=_text_part(text))
            item = self.head.message_item(text, self._status, self._at)
        elif kind == "call":
            assert self._call is not None
            part, arguments = self._call[0], "".join(self._call[1])
            place = self._call_place(part)
            data += self._event("response.function_call_arguments.done", **place, name=part.name, arguments=arguments)
            item = self.head.call_item(part.id, part.name, arguments, self._status)
        else:
            text = "".join(self._reasoning)
            data += self._event("response.reasoning_text.done", **self._place(kind), text=text)
            item = self.head.reasoning_item(text, self._at)
        data += self._event("response.output_item.done", output_index=len(self._done), item=item)
        self._done.append(item)
        self._open = None
        self._text.clear()
        self._reasoning.clear()
        return data

    def _place(self, kind: Literal["reasoning", "message"]) -> dict[str, Any]:
        item_id = self.head.item_id(kind, self._at)
        return {"item_id": item_id, "output_index": len(self._done), "content_index": 0}

    def _call_place(self, part: ToolCallPart) -> dict[str, Any]:
        return {"item_id": f"fc_{part.id}", "output_index": len(self._done)}

    def _event(self, kind: str, **fields: Any) -> bytes:
        text = encode_json({"type": kind, "sequence_number": self._number, **fields})
        self._number += 1
        return sse_event(text, kind)


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _reply(about: dict[str, Any] | None, text: str, reasoning: str | None) -> dict[str, Any]:
    """Return a model's reply in a fan-out."""
    return {**(about or {}), "text": text, "reasoning": reasoning}


def _status(reason: FinishReason) -> Status:
    return "incomplete" if reason == "length" else "completed"
