"""POST /v1/chat/completions: OpenAI's wire on one side, one model or one task's fan-out on the other.

`model` decides: it names a model (alone, plain OpenAI behaviour), a task (`vqa`: the merged reply) or a task with
models (`vqa:*`, `vqa:a,b`: the merged reply and each model's own).
"""

from pydantic import ValidationError
from pydantic_core import from_json
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from serve.api.body import parsed
from serve.api.chat_completions.conversation import Conversation, read
from serve.api.chat_completions.model_completion import ModelCompletion
from serve.api.chat_completions.replies import ChatCompletion, Head
from serve.api.chat_completions.request import ChatCompletionRequest
from serve.api.chat_completions.task_completion import TaskCompletion, fan_out_target
from serve.api.disconnect import cancel_on_disconnect
from serve.api.error_responses import validation_error
from serve.api.json_body import checked
from serve.api.metrics import Metrics
from serve.api.pictures import Pictures
from serve.api.pieces import PiecewiseJson
from serve.api.sse import opened
from serve.errors import BadRequest
from serve.router import Router
from serve.router.plan import find_route

__all__ = ["ChatCompletion", "ChatCompletionRequest", "answer"]


async def answer(router: Router, metrics: Metrics, pictures: Pictures, http: HttpRequest) -> Response:
    """Answer one request, whole or streamed. Raises what the client should hear."""
    request, conversation = await parsed(http, _read)
    target, arrived = fan_out_target(router, request.model, film=conversation.video is not None), http.state.arrived
    completion = (
        TaskCompletion(router, metrics, pictures, target, request, conversation, arrived)
        if target is not None
        else ModelCompletion(
            find_route(router.routes, request.model), metrics, pictures, request, conversation, arrived
        )
    )
    head = Head(http.state.request_id, request.model)
    if request.stream:
        return await opened(http.receive, completion.frames(head))
    whole = await cancel_on_disconnect(http.receive, completion.whole(head))
    return PiecewiseJson(whole)


def _read(body: bytes) -> tuple[ChatCompletionRequest, Conversation]:
    try:
        given = from_json(checked(body))
    except ValueError:
        raise BadRequest("The body is not valid JSON.", code="invalid_json") from None
    try:
        request = ChatCompletionRequest.model_validate(given)
    except ValidationError as error:
        raise validation_error(error, given) from None
    conversation = read(request.messages)
    request.messages.clear()  # they hold the picture's base64; the conversation has the rest
    return request, conversation
