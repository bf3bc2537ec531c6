"""Who can do it, ask them all, interleave, deadline, merge. Imports neither torch nor an engine."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Literal, Protocol

from serve.engines.base import Piece, Prompt
from serve.errors import BadRequest, ModelError, NotFound, ServeError, Unavailable
from serve.models.base import Model
from serve.tasks import TASKS
from serve.tasks.base import Delta, Event, Merged, Reply, ReplyError, Request
from serve.worker import Status

log = logging.getLogger(__name__)


class Route(Protocol):
    """The way to one model: a Worker in this process, or a handle to one in another."""

    @property
    def model(self) -> Model: ...

    def answer(self, task: str, request: Request) -> AsyncGenerator[Delta | Reply, None]: ...

    def speak(self, prompt: Prompt) -> AsyncGenerator[Piece, None]: ...

    async def status(self) -> Status: ...


class Router:
    """Fans one request out over routes, in catalogue order.

    routes: in the order of the catalogue, which is the order of everything that is returned.
    """

    def __init__(self, routes: Sequence[Route]) -> None:
        self.routes = {route.model.name: route for route in routes}

    def route(self, name: str, param: str = "model") -> Route:
        """The route of one served model. Raises NotFound naming the served ones."""
        if name not in self.routes:
            raise NotFound(
                f"The model {name[:200]!r} is not served here. Served: {', '.join(self.routes)}.",
                param=param,
                code="model_not_found",
            )
        return self.routes[name]

    def able(self, task: str, names: Sequence[str] | None = None) -> list[Route]:
        """The routes that will be asked, in catalogue order. Raises NotFound or BadRequest naming `models`."""
        wanted = [self.route(name, "models") for name in names] if names is not None else list(self.routes.values())
        unable = [route.model.name for route in wanted if task not in route.model.skills]
        if names is not None and unable:
            raise BadRequest(f"{', '.join(unable)} cannot do {task}.", param="models", code="task_not_supported")
        chosen = {route.model.name for route in wanted} - set(unable)
        if not chosen:
            raise NotFound(f"No served model can do {task}.", param="models", code="no_able_model")
        return [route for name, route in self.routes.items() if name in chosen]

    async def statuses(self, timeout_s: float = 2.0) -> list[Status]:
        """Every model's status; one that does not say within `timeout_s` counts as starting."""

        async def ask(route: Route) -> Status:
            try:
                return await asyncio.wait_for(route.status(), timeout_s)
            except (TimeoutError, ServeError):
                return Status(route.model.name, "starting", "not reachable yet", 0.0)

        return list(await asyncio.gather(*map(ask, self.routes.values())))

    async def events(self, task: str, request: Request) -> AsyncGenerator[Event, None]:
        """Deltas and Replies in the order they come, then Merged. Leaving early stops every model.

        Raises what `check` raises before the first event; Unavailable when not one model answered; the first model's
        own refusal where every model refused the request.
        """
        routes = self.check(task, request)
        column = Column(task, request, deadline=time.monotonic() + request.deadline_s)
        jobs = [asyncio.create_task(column.ask(route)) for route in routes]
        replies: dict[str, Reply] = {}
        needed = min(request.quorum or len(routes), len(routes))
        try:
            while len(replies) < len(routes):
                event = await column.events.get()
                yield event
                if isinstance(event, Reply):
                    replies[event.model] = event
                    if sum(reply.status == "ok" for reply in replies.values()) >= needed:
                        break
            for route in routes:
                if route.model.name not in replies:
                    replies[route.model.name] = reply = column.given_up(route.model.name, needed)
                    yield reply
        finally:
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)
        if len(column.refusals) == len(routes):  # the request is at fault, not the models: a retry would not help
            raise column.refusals[routes[0].model.name]
        yield await asyncio.to_thread(merge, task, request, [replies[route.model.name] for route in routes])

    def check(self, task: str, request: Request) -> list[Route]:
        """The routes a request will go to. Raises what the client should hear before anything is started."""
        routes = self.able(task, request.models)
        methods = TASKS[task].methods
        if request.merge is not None and request.merge not in methods:
            raise BadRequest(f"{task} merges by {', '.join(methods)}.", param="merge")
        if request.quorum is not None and request.quorum > len(routes):
            raise BadRequest(f"The quorum is larger than the {len(routes)} models asked.", param="quorum")
        for name in request.weights or {}:
            self.route(name, "weights")
        return routes


class Column:
    """One model's side of a fan-out: its events into the common queue, its failures into its own Reply."""

    def __init__(self, task: str, request: Request, deadline: float) -> None:
        self.task = task
        self.request = request
        self.deadline = deadline
        self.began = time.monotonic()
        self.events: asyncio.Queue[Delta | Reply] = asyncio.Queue()
        self.heard: dict[str, tuple[float, str]] = {}
        self.refusals: dict[str, ServeError] = {}

    async def ask(self, route: Route) -> None:
        name = route.model.name
        try:
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + self.deadline - time.monotonic()):
                await self._listen(route)
        except TimeoutError:
            said = f"{name} had not finished after {self.request.deadline_s:g} s."
            self.events.put_nowait(self.failed(name, "timeout", "deadline_exceeded", said))
        except ServeError as error:
            if error.status < 500:
                self.refusals[name] = error
            self.events.put_nowait(self.failed(name, "error", error.code or "model_error", error.message))
        except Exception:  # a bug in one model's path costs that model's column only
            log.exception("model %s failed", name)
            self.events.put_nowait(self.failed(name, "error", "internal_error", f"{name} failed unexpectedly."))

    async def _listen(self, route: Route) -> None:
        answer = route.answer(self.task, self.request)
        try:
            async for event in answer:
                if isinstance(event, Delta):
                    first, text = self.heard.get(event.model, (self._elapsed_ms(), ""))
                    self.heard[event.model] = (first, text + event.text)
                else:
                    self._time(event)
                self.events.put_nowait(event)
                if isinstance(event, Reply):
                    return
            raise ModelError(f"{route.model.name} stopped without a reply.", code="engine_dead")
        finally:
            await answer.aclose()

    def failed(self, model: str, status: Literal["error", "timeout"], code: str, message: str) -> Reply:
        text = self.heard.get(model, (0.0, ""))[1]
        reply = Reply(model=model, status=status, text=text, error=ReplyError(code=code, message=message))
        self._time(reply)
        return reply

    def given_up(self, model: str, needed: int) -> Reply:
        return self.failed(model, "timeout", "quorum_reached", f"Not waited for: {needed} others had answered.")

    def _time(self, reply: Reply) -> None:
        reply.latency_ms = round(self._elapsed_ms(), 1)
        if reply.model in self.heard:
            reply.ttft_ms = round(self.heard[reply.model][0], 1)

    def _elapsed_ms(self) -> float:
        return (time.monotonic() - self.began) * 1000


def merge(task: str, request: Request, replies: Sequence[Reply]) -> Merged:
    """Replies (catalogue order) as one, by the request's method. Raises Unavailable when none is ok."""
    good = [reply for reply in replies if reply.status == "ok" and reply.result is not None]
    if not good:
        said = [(reply.model, reply.error.message) for reply in replies if reply.error]
        why = " ".join(words if model in words else f"{model}: {words}" for model, words in said)
        raise Unavailable(f"No model answered. {why}", code="no_model_answered")
    methods = TASKS[task].methods
    method = request.merge or next(iter(methods))
    weights: Mapping[str, float] = request.weights or {}
    return methods[method](good, weights)
