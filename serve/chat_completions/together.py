"""A task named where a model would be: all its models are asked, choice 0 is their merged reply."""

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

from pydantic import ValidationError

from serve.chat_completions.conversation import Conversation
from serve.chat_completions.replies import Choice, Head, Said, finish_reason
from serve.chat_completions.request import FLEX, ChatCompletionRequest, TextFormat
from serve.chat_completions.telling import Asked, Telling, about_merged, about_reply
from serve.deadline import Deadline
from serve.errors import BadRequest, NotFound
from serve.router import Router
from serve.tasks import TASKS
from serve.tasks.base import Request
from serve.wire.fan_out import FanOut
from serve.wire.forms import phrases
from serve.wire.refusals import refusal
from serve.wire.sse import Last

# What only one model alone can honour, with the values that ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
}
PASSED_ON = (
    "temperature", "top_p", "seed", "stop", "ignore_eos", "deadline_s", "quorum", "merge", "weights", "judge"
)  # fmt: skip


def named(router: Router, model: str, *, film: bool = False) -> Asked | None:
    """What a `model` that names a task asks for, about a picture or a film; None where it names a served model.

    Raises NotFound for neither, and as Router.able does.
    """
    if model in router.routes:
        return None
    task, colon, names = model.partition(":")
    if task not in TASKS:
        known = ", ".join([*router.routes, *TASKS])
        raise NotFound(
            f"The model {model[:200]!r} is not served here. Models and tasks: {known}.",
            param="model",
            code="model_not_found",
        )
    wanted = None if not colon or names == "*" else [name.strip() for name in names.split(",") if name.strip()]
    if wanted == []:
        raise BadRequest(f"{task}: names no model; {task}:* asks all that can.", param="model")
    try:
        routes = router.able(task, wanted, film=film)
    except (BadRequest, NotFound) as error:
        raise type(error)(error.message, param="model", code=error.code) from None
    return Asked(task, [route.model.name for route in routes], bool(colon))


class Together:
    """One fan-out in OpenAI's words. Raises BadRequest for what a fan-out cannot honour."""

    def __init__(
        self,
        fan_out: FanOut,
        asked: Asked,
        request: ChatCompletionRequest,
        conversation: Conversation,
        arrived: float,
    ) -> None:
        """arrived: when the request's head did, by the event loop's clock."""
        _refuse_what_only_one_model_can(request)
        self.fan_out = fan_out
        self.asked = asked
        self.options = request.stream_options
        self.path = conversation.question()[1]
        self.request = task_request(asked, request, conversation)
        self.deadline = Deadline.after(self.request.deadline_s, arrived)
        fan_out.router.check(asked.task, self.request)

    async def whole(self, head: Head) -> list[bytes]:
        """Return the completion as JSON, in parts."""
        with _said_at(self.path):
            answer = await self.fan_out.answer(self.asked.task, self.request, self.deadline)
        words = TASKS[self.asked.task].words(answer.merged.result)
        about = about_merged(self.asked.task, answer.merged)
        choices = [Choice(index=0, message=Said(content=words), finish_reason="stop", diptych=about)]
        choices += [
            Choice(
                index=at,
                message=Said(content=reply.text),
                finish_reason=finish_reason(reply.finish_reason),
                diptych=about_reply(self.asked.task, reply),
            )
            for at, reply in enumerate(answer.replies if self.asked.each else [], start=1)
        ]
        return [head.completion(choices, answer.usage()).model_dump_json().encode()]

    async def frames(self, head: Head) -> AsyncGenerator[bytes, None]:
        """Each model's words as they are spoken, where they are wanted; choice 0 last."""
        telling = Telling(head, self.options, self.asked)
        with _said_at(self.path):
            async with aclosing(self.fan_out.events(self.asked.task, self.request, self.deadline)) as events:
                async for event in events:
                    if said := b"".join(telling.frames(event)):
                        yield said
        yield Last(telling.last())


def task_request(asked: Asked, request: ChatCompletionRequest, conversation: Conversation) -> Request:
    """The conversation's last question about its image, as the task's request. Earlier turns are not part of it."""
    kind = TASKS[asked.task].request
    text, path = conversation.question()
    if conversation.image is None and conversation.video is None:
        raise BadRequest(f"{asked.task} needs an image.", param=path, code="missing_image")
    fields: dict[str, Any] = {name: getattr(request, name) for name in PASSED_ON}
    fields |= {"image": conversation.image, "video": conversation.video, "models": asked.models}
    length = "max_tokens" if request.max_completion_tokens is None else "max_completion_tokens"
    fields["max_tokens"] = getattr(request, length)
    fields["priority"] = "batch" if request.service_tier == FLEX else None
    fields["stream"] = bool(request.stream and asked.each)  # whether the models' words are wanted as they are spoken
    said = "labels" if "labels" in kind.model_fields else "question"
    if said in kind.model_fields:
        if not text:
            raise BadRequest(f"{asked.task} needs words beside the image.", param=path, code="missing_text")
        fields[said] = phrases(text) if said == "labels" else text
    given = {name: value for name, value in fields.items() if value is not None}
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        told = refusal(error, given)
        field = (told.param or "").partition("[")[0]
        param = {said: path, "max_tokens": length}.get(field, told.param)
        raise BadRequest(told.message, param=param, code=told.code) from None


@contextmanager
def _said_at(path: str) -> Iterator[None]:
    """A task's own words for what a client said, as the message where it was said."""
    try:
        yield
    except BadRequest as error:
        param = path if error.param in ("question", "labels") else error.param
        raise BadRequest(error.message, param=param, code=error.code) from None


def _refuse_what_only_one_model_can(request: ChatCompletionRequest) -> None:
    refused = [name for name, accepted in NEUTRAL.items() if getattr(request, name) not in accepted]
    if not isinstance(request.response_format, TextFormat | None):
        refused.append("response_format")
    if refused:
        raise BadRequest(
            f"{refused[0]} can be asked of one model, not of a task.", param=refused[0], code="unsupported_parameter"
        )
