"""Completes a chat whose `model` names a task: calls all its models and returns the merged reply as choice 0."""

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from serve.api.chat_completions.chunk_writer import ChunkWriter, FanOutTarget, about_merged, about_reply, merged_text
from serve.api.chat_completions.conversation import Conversation
from serve.api.chat_completions.request import FLEX, ChatCompletionRequest, TextFormat
from serve.api.chat_completions.response import Choice, CompletionHead, ResponseMessage, finish_reason
from serve.api.error_responses import validation_error
from serve.api.events import delay_failures, gather_answer, refuse_overload
from serve.api.media_loader import MediaLoader
from serve.api.metrics import Metrics
from serve.api.responses import LastEvents
from serve.errors import BadRequest, Forbidden, NotFound
from serve.rights import RIGHTS
from serve.router import Router
from serve.router.router import CHAT, able_routes, suited
from serve.tasks import TASKS
from serve.tasks.request import Request

# Fields that only a single model supports, with the values that have no effect.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
}
PASSED_ON = (
    "temperature", "top_p", "seed", "stop", "ignore_eos", "deadline_s", "quorum", "merge", "weights", "judge",
    "min_agreement", "reasoning_effort", "chat_template_kwargs", "thinking_token_budget",
)  # fmt: skip


def fan_out_target(router: Router, model: str, *, video: bool = False) -> FanOutTarget | None:
    """Return the task and models that `model` names; None where it names a served model.

    video: the request has a video and not an image. Raises NotFound for an unknown name, Forbidden for one that the key
    may not use, and as `able_routes`.
    """
    rights = RIGHTS.get()
    if model in router.routes:
        rights.check_task(CHAT, "model")
        return None
    task, colon, names = model.partition(":")
    if task not in TASKS:
        rights.check_model(model, "model")
        known = ", ".join([*router.routes, *rights.allowed_tasks(TASKS)])
        raise NotFound(
            f"The model {model[:200]!r} is not served here. Models and tasks: {known}.",
            param="model",
            code="model_not_found",
        )
    rights.check_task(task, "model")
    wanted = None if not colon or names == "*" else [name.strip() for name in names.split(",") if name.strip()]
    if wanted == []:
        raise BadRequest(f"{task}: names no model; {task}:* asks all that can.", param="model")
    try:
        routes = able_routes(router.routes, task, wanted, video=video)
    except (BadRequest, Forbidden, NotFound) as error:
        raise type(error)(error.message, param="model", code=error.code) from None
    return FanOutTarget(task, routes, with_replies=bool(colon), named=wanted is not None)


class TaskCompletion:
    """A completion by a fan-out. Raises BadRequest for fields that a fan-out does not support."""

    def __init__(
        self,
        router: Router,
        metrics: Metrics,
        media: MediaLoader,
        target: FanOutTarget,
        request: ChatCompletionRequest,
        conversation: Conversation,
        arrived: float,
    ) -> None:
        """arrived: time of the request's head by the event loop's clock."""
        _refuse_single_model_fields(request)
        self.router, self.metrics, self.media = router, metrics, media
        self.options = request.stream_options
        length = "max_tokens" if request.max_completion_tokens is None else "max_completion_tokens"
        self.chat_names = {"max_tokens": length, "models": "model"}
        if (text_field := TASKS[target.task].text_field) is not None:
            self.chat_names[text_field.name] = conversation.question()[1]
        with self._chat_errors():
            task_wanted = task_request(target, request, conversation)
            if not target.named:
                target = replace(target, routes=suited(target.routes, target.task, task_wanted))
            self.plan = router.plan(target.task, task_wanted, routes=target.routes, arrived=arrived)
        self.target = target
        refuse_overload(target.routes, target.task, metrics)

    async def whole(self, head: CompletionHead) -> list[bytes]:
        """Return the completion as JSON, in parts."""
        plan = self.plan
        with self._chat_errors():
            async with self.media.with_pixels(plan.request, plan.deadline):
                answer = await gather_answer(self.router, plan, self.metrics)
        text = merged_text(plan.task, answer.merged)
        about = about_merged(plan.task, answer.merged)
        choices = [Choice(index=0, message=ResponseMessage(content=text), finish_reason="stop", diptych=about)]
        choices += [
            Choice(
                index=index,
                message=ResponseMessage(content=reply.text, reasoning=reply.reasoning),
                finish_reason=finish_reason(reply.finish_reason),
                diptych=about_reply(plan.task, reply),
            )
            for index, reply in enumerate(answer.replies if self.target.with_replies else [], start=1)
        ]
        return [head.completion(choices, answer.usage()).model_dump_json().encode()]

    async def stream(self, head: CompletionHead) -> AsyncGenerator[bytes, None]:
        """Yield the chunks: each model's text as it comes, where target.with_replies is set; choice 0 last."""
        writer, plan = ChunkWriter(head, self.options, self.target), self.plan
        with self._chat_errors():
            async with (
                self.media.with_pixels(plan.request, plan.deadline),
                aclosing(delay_failures(self.router, plan, self.metrics)) as events,
            ):
                async for event in events:
                    if data := b"".join(writer.write(event)):
                        yield data
        yield LastEvents(writer.last())

    @contextmanager
    def _chat_errors(self) -> Iterator[None]:
        """Name the chat's field in errors about the task's: for `labels[2]` the path of the last user message."""
        try:
            yield
        except BadRequest as error:
            error.param = self.chat_names.get((error.param or "").partition("[")[0], error.param)
            raise


def task_request(target: FanOutTarget, request: ChatCompletionRequest, conversation: Conversation) -> Request:
    """Return the last question and the image as a request of the task. Earlier turns are left out."""
    kind, text_field = TASKS[target.task].request, TASKS[target.task].text_field
    text, path = conversation.question()
    if conversation.image is None and conversation.video is None:
        raise BadRequest(f"{target.task} needs an image.", param=path, code="missing_image")
    fields: dict[str, Any] = {name: getattr(request, name) for name in PASSED_ON}
    fields |= {"image": conversation.image, "video": conversation.video, "models": target.models}
    completion_tokens = request.max_completion_tokens
    fields["max_tokens"] = request.max_tokens if completion_tokens is None else completion_tokens
    fields["priority"] = "batch" if request.service_tier == FLEX else None
    fields["stream"] = bool(request.stream and target.with_replies)  # the models' text is needed as it comes
    if text_field is not None:
        if not text:
            raise BadRequest(f"{target.task} needs words beside the image.", param=path, code="missing_text")
        fields[text_field.name] = text_field.parse(text)
    given = {name: value for name, value in fields.items() if value is not None}
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise validation_error(error, given) from None


def _refuse_single_model_fields(request: ChatCompletionRequest) -> None:
    refused = [name for name, accepted in NEUTRAL.items() if getattr(request, name) not in accepted]
    if not isinstance(request.response_format, TextFormat | None):
        refused.append("response_format")
    if request.tools and request.tool_choice != "none":
        refused.append("tools")
    elif request.tool_choice not in (None, "none", "auto"):
        refused.append("tool_choice")
    if refused:
        raise BadRequest(
            f"{refused[0]} can be asked of one model, not of a task.", param=refused[0], code="unsupported_parameter"
        )
