"""POST /v1/tasks/{task}: one request in, every model's reply and their merge out, whole or as a stream."""

import functools
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Literal

from pydantic import BaseModel, Field, create_model
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from serve.api.disconnect import cancel_on_disconnect
from serve.api.events import gathered, settled
from serve.api.forms import read
from serve.api.metrics import Metrics
from serve.api.pictures import Pictures
from serve.api.pieces import PiecewiseJson
from serve.api.sse import frame, opened
from serve.router import Router
from serve.router.plan import Plan
from serve.tasks import TASKS
from serve.tasks.base import Delta, Merged, Reply, Usage


class Size(BaseModel):
    """The image as seen, after EXIF orientation: all coordinates are its pixels."""

    width: int
    height: int


class Length(BaseModel):
    """The video as seen: the image's size is that of its frames."""

    frames: int = Field(description="How many were taken, evenly spaced; a model may look at fewer.")
    seconds: float = Field(description="How long the whole film is.")


class TaskAnswer(BaseModel):
    """All models' replies to one task side by side, and merged into one."""

    id: str
    object: Literal["diptych.task"] = "diptych.task"
    task: str
    image: Size
    video: Length | None = Field(default=None, exclude_if=lambda video: video is None)
    merged: Merged
    replies: list[Reply]
    usage: Usage


@functools.cache
def documented(task: str) -> type[TaskAnswer]:
    """Return a task's answer as the OpenAPI document has it: with the task's own kind of result."""
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


async def answer(router: Router, metrics: Metrics, pictures: Pictures, task: str, http: HttpRequest) -> Response:
    """Answer one request. Raises what the client should hear: BadRequest, NotFound, TooLarge, Unavailable."""
    request = await read(http, TASKS[task].request)
    plan = router.plan(task, request, arrived=http.state.arrived)
    if request.stream:
        return await opened(http.receive, _frames(router, metrics, pictures, plan), error_event="error")
    whole = await cancel_on_disconnect(http.receive, _whole(router, metrics, pictures, plan, http.state.request_id))
    return PiecewiseJson([whole.model_dump_json().encode()])


async def _whole(router: Router, metrics: Metrics, pictures: Pictures, plan: Plan, request_id: str) -> TaskAnswer:
    async with pictures.with_pixels(plan.request, plan.deadline):
        whole = await gathered(plan, router.run(plan), metrics)
    image, video = plan.request.image, plan.request.video
    return TaskAnswer(
        id=f"task-{request_id}",
        task=plan.task,
        image=Size(width=image.width, height=image.height),
        video=None if video is None else Length(frames=len(video.frames), seconds=video.seconds),
        merged=whole.merged,
        replies=whole.replies,
        usage=whole.usage(),
    )


async def _frames(router: Router, metrics: Metrics, pictures: Pictures, plan: Plan) -> AsyncGenerator[bytes, None]:
    async with (
        pictures.with_pixels(plan.request, plan.deadline),
        aclosing(settled(plan, router.run(plan), metrics)) as events,
    ):
        async for event in events:
            if isinstance(event, Delta):
                yield frame({"model": event.model, "text": event.text}, "delta")
            elif isinstance(event, Reply):
                yield frame(event.model_dump_json(), "reply")
            else:
                yield frame(event.model_dump_json(), "merged")
