"""POST /v1/chat/completions: OpenAI's wire on one side, one model or one task's fan-out on the other.

What `model` names decides: a model (alone, plain OpenAI behaviour), a task (`vqa`: the merged reply) or a task with
models (`vqa:*`, `vqa:a,b`: the merged reply and each model's own).
"""

from pydantic import ValidationError
from pydantic_core import from_json
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from serve.chat_completions.alone import Alone
from serve.chat_completions.conversation import Conversation, read
from serve.chat_completions.replies import ChatCompletion, Head
from serve.chat_completions.request import ChatCompletionRequest
from serve.chat_completions.together import Together, named
from serve.errors import BadRequest
from serve.wire.body import parsed
from serve.wire.client import attended
from serve.wire.fan_out import FanOut
from serve.wire.json_body import checked
from serve.wire.pieces import PiecewiseJson
from serve.wire.refusals import refusal
from serve.wire.sse import opened

__all__ = ["ChatCompletion", "ChatCompletionRequest", "answer"]


async def answer(fan_out: FanOut, http: HttpRequest) -> Response:
    """One completion, whole or streamed. Raises what the client is told."""
    request, conversation = await parsed(http, _read)
    asked = named(fan_out.router, request.model, film=conversation.video is not None)
    head = Head(http.state.request_id, request.model)
    speaker = (
        Together(fan_out, asked, request, conversation, http.state.arrived)
        if asked is not None
        else Alone(fan_out, fan_out.router.route(request.model), request, conversation, http.state.arrived)
    )
    if request.stream:
        return await opened(http.receive, speaker.frames(head))
    whole = await attended(http.receive, speaker.whole(head))
    return PiecewiseJson(whole)


def _read(body: bytes) -> tuple[ChatCompletionRequest, Conversation]:
    try:
        given = from_json(checked(body))
    except ValueError:
        raise BadRequest("The body is not valid JSON.", code="invalid_json") from None
    try:
        request = ChatCompletionRequest.model_validate(given)
    except ValidationError as error:
        raise refusal(error, given) from None
    conversation = read(request.messages)
    request.messages.clear()  # they hold the picture's base64; the conversation has the rest
    return request, conversation
