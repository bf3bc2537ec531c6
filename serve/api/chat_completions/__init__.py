"""Answers POST /v1/chat/completions, OpenAI's format, with one model or with a task's fan-out.

The field `model` names a model (plain OpenAI behaviour), a task (`vqa`: the merged reply) or a task with models
(`vqa:*`, `vqa:a,b`: the merged reply and each model's own).
"""

from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from serve.api.body import check_values, parse_body
from serve.api.chat_completions.conversation import Conversation, read_messages
from serve.api.chat_completions.model_completion import ModelCompletion
from serve.api.chat_completions.request import ChatCompletionRequest
from serve.api.chat_completions.response import ChatCompletion, CompletionHead
from serve.api.chat_completions.task_completion import TaskCompletion, fan_out_target
from serve.api.error_responses import validation_error
from serve.api.media_loader import MediaLoader
from serve.api.metrics import Metrics
from serve.api.responses import PiecewiseJson, cancel_on_disconnect, open_stream
from serve.errors import BadRequest
from serve.router import Router
from serve.router.router import find_route

__all__ = ["ChatCompletion", "ChatCompletionRequest", "complete_chat", "new_completion", "parsed_json"]


async def complete_chat(router: Router, metrics: Metrics, media: MediaLoader, http: HttpRequest) -> Response:
    """Answer a request, as JSON or as a stream. Raises ServeError."""
    request, conversation = await parse_body(http, _read)
    completion = new_completion(router, metrics, media, request, conversation, http.state.arrived)
    head = CompletionHead(http.state.request_id, request.model)
    if request.stream:
        return await open_stream(http.receive, completion.stream(head))
    whole = await cancel_on_disconnect(http.receive, completion.whole(head))
    return PiecewiseJson(whole)


def new_completion(
    router: Router,
    metrics: Metrics,
    media: MediaLoader,
    request: ChatCompletionRequest,
    conversation: Conversation,
    arrived: float,
) -> ModelCompletion | TaskCompletion:
    """Return the completion by the models that `request.model` names. Raises ServeError.

    arrived: time of the request's head by the event loop's clock.
    """
    target = fan_out_target(router, request.model, video=conversation.video is not None)
    if target is not None:
        return TaskCompletion(router, metrics, media, target, request, conversation, arrived)
    route = find_route(router.routes, request.model)
    return ModelCompletion(route, metrics, media, request, conversation, arrived)


def parsed_json(body: bytes) -> Any:
    """Return a body's JSON. Raises BadRequest."""
    try:
        return from_json(check_values(body))
    except ValueError:
        raise BadRequest("The body is not valid JSON.", code="invalid_json") from None


def _read(body: bytes) -> tuple[ChatCompletionRequest, Conversation]:
    given = parsed_json(body)
    try:
        request = ChatCompletionRequest.model_validate(given)
    except ValidationError as error:
        raise validation_error(error, given) from None
    conversation = read_messages(request.messages)
    request.messages.clear()  # they hold the image's base64, which the conversation does not need
    return request, conversation
