"""Answers POST /v1/responses, OpenAI's newer format, by the same way as a chat completion.

A request is translated to a chat completion's (`request.py`), whose choices and chunks are written as output items and
their events (`response.py`). Of a fan-out the merged reply is the output; each model's reply is in `diptych`.
"""

import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass

from pydantic import ValidationError
from starlette.requests import Request as HttpRequest
from starlette.responses import Response as HttpResponse

from serve.api.body import parse_body
from serve.api.chat_completions import new_completion, parsed_json
from serve.api.chat_completions.conversation import Conversation, read_messages
from serve.api.chat_completions.request import ChatCompletionRequest
from serve.api.error_responses import validation_error
from serve.api.media_loader import MediaLoader
from serve.api.metrics import Metrics
from serve.api.model_responses.request import ResponseRequest, chat_fields, messages_of_chat
from serve.api.model_responses.response import Response, ResponseHead
from serve.api.responses import PiecewiseJson, cancel_on_disconnect, open_stream
from serve.errors import ServeError
from serve.router import Router

__all__ = ["Response", "ResponseRequest", "create_response"]

OWN_NAMES = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "response_format.json_schema.schema": "text.format.schema",
    "reasoning_effort": "reasoning.effort",
}
"""Names of a chat completion's fields in a response's request."""
MESSAGE = re.compile(r"messages\[(\d+)\](.*)", re.DOTALL)


@dataclass(frozen=True)
class Translated:
    """A request with its chat completion. paths: of the chat's messages in the request."""

    request: ResponseRequest
    chat: ChatCompletionRequest
    conversation: Conversation
    paths: list[str]

    @contextmanager
    def named(self) -> Iterator[None]:
        """Name the request's own field in errors about the chat completion's."""
        try:
            yield
        except ServeError as error:
            error.param = own_name(error.param, self.paths)
            raise


async def create_response(router: Router, metrics: Metrics, media: MediaLoader, http: HttpRequest) -> HttpResponse:
    """Answer a request, as JSON or as a stream. Raises ServeError."""
    translated = await parse_body(http, _read)
    head = ResponseHead(http.state.request_id, translated.request.model, request=translated.request)
    with translated.named():
        completion = new_completion(
            router, metrics, media, translated.chat, translated.conversation, http.state.arrived
        )
        if translated.request.stream:
            events = _named_events(translated, completion.stream(head))
            return await open_stream(http.receive, events, error_event="error")
        return PiecewiseJson(await cancel_on_disconnect(http.receive, completion.whole(head)))


async def _named_events(translated: Translated, events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    with translated.named():
        async with aclosing(events):
            async for data in events:
                yield data


def own_name(param: str | None, paths: list[str]) -> str | None:
    """Return the name of a chat completion's field in the request. paths: of the chat's messages."""
    if param is None:
        return None
    matched = MESSAGE.fullmatch(param)
    if matched is None:
        return OWN_NAMES.get(param, param.replace(".function.", "."))  # of a tool
    path = paths[int(matched[1])]
    return path + matched[2] if "[" in path else path  # instructions, or an input that is a text, have no parts


def _read(body: bytes) -> Translated:
    given = parsed_json(body)
    try:
        request = ResponseRequest.model_validate(given)
    except ValidationError as error:
        raise validation_error(error, given) from None
    messages, paths = messages_of_chat(request)
    fields = chat_fields(request, messages)
    try:
        chat = ChatCompletionRequest.model_validate(fields)
    except ValidationError as error:
        translated = validation_error(error, fields)
        translated.param = own_name(translated.param, paths)
        raise translated from None
    request.input = ""  # it holds the image's base64
    try:
        conversation = read_messages(chat.messages)
    except ServeError as error:
        error.param = own_name(error.param, paths)
        raise
    chat.messages.clear()
    return Translated(request, chat, conversation, paths)
