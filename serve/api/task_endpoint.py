"""Answers POST /v1/tasks/{task} with every model's reply and the merged one, as JSON or as a stream."""

import functools
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Literal

from pydantic import BaseModel, Field, create_model
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from serve.api.body import read_task_request
from serve.api.error_responses import error_response
from serve.api.events import delay_failures, gather_answer, refuse_overload
from serve.api.responses import PiecewiseJson, cancel_on_disconnect, open_stream, sse_event
from serve.api.services import Services
from serve.errors import NoAnswer
from serve.router.router import Plan
from serve.tasks import TASKS
from serve.tasks.reply import Delta, Merged, Reply, Usage, Waiting


class ImageSize(BaseModel):
    """The size of the image after EXIF orientation. All coordinates are in its pixels."""

    width: int
    height: int


class Length(BaseModel):
    """The length of the video. Its frames have the size given as `image`."""

    frames: int = Field(description="Number of frames taken, evenly spaced; a model may use fewer.")
    seconds: float = Field(description="Length of the whole video.")


class TaskAnswer(BaseModel):
    """All models' replies to a task, and the merged reply."""

    id: str
    object: Literal["diptych.task"] = "diptych.task"
    task: str
    image: ImageSize
    video: Length | None = Field(default=None, exclude_if=lambda video: video is None)
    merged: Merged
    replies: list[Reply]
    usage: Usage


@functools.cache
def answer_schema(task: str) -> type[TaskAnswer]:
    """Return the response class of a task for the OpenAPI document, with the task's own class of result."""
    result = TASKS[task].result
    kind: Any = result | None
    name = result.__name__.removesuffix("Result")
    reply: Any = create_model(f"{name}Reply", __base__=Reply, __doc__=Reply.__doc__, result=(kind, None))
    merged: Any = create_model(f"{name}Merged", __base__=Merged, __doc__=Merged.__doc__, result=(kind, None))
    return create_model(
        f"{name}Answer",
        __base__=TaskAnswer,
        __doc__=TaskAnswer.__doc__,
        merged=(merged, ...),
        replies=(list[reply], ...),
    )


async def run_task(services: Services, task: str, http: HttpRequest) -> Response:
    """Answer a request. Raises BadRequest, NotFound, TooLarge or Unavailable."""
    request = await read_task_request(http, TASKS[task].request)
    plan = services.router.plan(task, request, arrived=http.state.arrived)
    refuse_overload(plan.routes, task, services.metrics)
    if request.stream:
        return await open_stream(http.receive, _stream(services, plan), error_event="error")
    try:
        whole = await cancel_on_disconnect(http.receive, _whole(services, plan, http.state.request_id))
    except NoAnswer as error:
        return error_response(error, more_fields={"replies": error.replies} if error.replies else None)
    return PiecewiseJson([whole.model_dump_json().encode()])


async def _whole(services: Services, plan: Plan, request_id: str) -> TaskAnswer:
    async with services.media.with_pixels(plan.request, plan.deadline):
        whole = await gather_answer(services.router, plan, services.metrics)
    image, video = plan.request.image, plan.request.video
    return TaskAnswer(
        id=f"task-{request_id}",
        task=plan.task,
        image=ImageSize(width=image.width, height=image.height),
        video=None if video is None else Length(frames=len(video.frames), seconds=video.seconds),
        merged=whole.merged,
        replies=whole.replies,
        usage=whole.usage(),
    )


async def _stream(services: Services, plan: Plan) -> AsyncGenerator[bytes, None]:
    async with (
        services.media.with_pixels(plan.request, plan.deadline),
        aclosing(delay_failures(services.router, plan, services.metrics)) as events,
    ):
        async for event in events:
            if isinstance(event, Delta):
                reasoning = {"reasoning": event.reasoning} if event.reasoning else {}
                yield sse_event({"model": event.model, "text": event.text, **reasoning}, "delta")
            elif isinstance(event, Waiting):
                yield sse_event({"model": event.model, "message": event.message}, "waiting")
            elif isinstance(event, Reply):
                yield sse_event(event.model_dump_json(), "reply")
            else:
                yield sse_event(event.model_dump_json(), "merged")
