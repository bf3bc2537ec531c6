"""POST /v1/tasks/{task}: one request in, every model's reply and their merge out, whole or as a stream."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Literal

from pydantic import BaseModel, Field, create_model
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from serve.deadline import Deadline
from serve.tasks import TASKS
from serve.tasks.base import Delta, Merged, Reply, Request, Task, Usage
from serve.wire.client import attended
from serve.wire.fan_out import FanOut
from serve.wire.forms import read
from serve.wire.pieces import PiecewiseJson
from serve.wire.sse import frame, opened


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


def documented(task: Task) -> type[TaskAnswer]:
    """What a task's answer is in the OpenAPI document: the same, with the task's own kind of result in it."""
    kind: Any = task.result | None
    name = task.result.__name__.removesuffix("Result")
    reply: Any = create_model(f"{name}Reply", __base__=Reply, __doc__=Reply.__doc__, result=(kind, None))
    merged: Any = create_model(f"{name}Merged", __base__=Merged, __doc__=Merged.__doc__, result=(kind, None))
    return create_model(
        f"{name}Answer",
        __base__=TaskAnswer,
        __doc__=TaskAnswer.__doc__,
        merged=(merged, ...),
        replies=(list[reply], ...),
    )


async def answer(fan_out: FanOut, task: str, http: HttpRequest) -> Response:
    """One task's reply. Raises what the client is told: BadRequest, NotFound, TooLarge, Unavailable."""
    request = await read(http, TASKS[task].request)
    fan_out.router.check(task, request)
    deadline = Deadline.after(request.deadline_s, http.state.arrived)
    if request.stream:
        return await opened(http.receive, _frames(fan_out, task, request, deadline), error_event="error")
    whole = await attended(http.receive, _whole(fan_out, task, request, deadline, http.state.request_id))
    return PiecewiseJson([whole.model_dump_json().encode()])


async def _whole(fan_out: FanOut, task: str, request: Request, deadline: Deadline, request_id: str) -> TaskAnswer:
    said, film = await fan_out.answer(task, request, deadline), request.video
    return TaskAnswer(
        id=f"task-{request_id}",
        task=task,
        image=Size(width=request.image.width, height=request.image.height),
        video=None if film is None else Length(frames=len(film.frames), seconds=film.seconds),
        merged=said.merged,
        replies=said.replies,
        usage=said.usage(),
    )


async def _frames(fan_out: FanOut, task: str, request: Request, deadline: Deadline) -> AsyncGenerator[bytes, None]:
    async with aclosing(fan_out.events(task, request, deadline)) as events:
        async for event in events:
            if isinstance(event, Delta):
                yield frame({"model": event.model, "text": event.text}, "delta")
            elif isinstance(event, Reply):
                yield frame(event.model_dump_json(), "reply")
            else:
                yield frame(event.model_dump_json(), "merged")
