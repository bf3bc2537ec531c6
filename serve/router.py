"""Who can do it, ask them all, interleave, deadline, merge. Imports neither torch nor an engine."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence

from serve import tracing
from serve.column import Column
from serve.deadline import Deadline
from serve.errors import BadRequest, NotFound, ParseError, ServeError, Unavailable
from serve.judge import SHARE, Judge
from serve.models.base import Model
from serve.route import Route
from serve.tasks import TASKS
from serve.tasks.base import Event, Merged, Reply, Request
from serve.worker import Status

CHAT = "chat"
JUDGE = "judge"
SHORT = 500
FEW = 8
"""The replies of so few models, of so many characters together, are merged where they are: the way to a thread and
back takes longer. What takes more grows with their lengths and with the square of their number."""
MERGE_S = 1.0
"""What a merge may take beyond the deadline: where one model is late, it begins only then."""


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

    def able(self, task: str, names: Sequence[str] | None = None, *, film: bool = False) -> list[Route]:
        """The routes that will be asked about a picture, or a film, in catalogue order.

        Raises NotFound or BadRequest naming `models`.
        """
        wanted = [self.route(name, "models") for name in names] if names is not None else list(self.routes.values())
        unable = [route.model.name for route in wanted if task not in route.model.skills]
        if names is not None and unable:
            raise BadRequest(f"{', '.join(unable)} cannot do {task}.", param="models", code="task_not_supported")
        blind = [route.model.name for route in wanted if not takes(route.model, film)]
        if names is not None and blind:
            raise BadRequest(unseeing(blind, film), param="models", code=unseen(film))
        chosen = {route.model.name for route in wanted} - {*unable, *blind}
        if not chosen:
            about = " about a video" if film else " about an image" if len(unable) < len(wanted) else ""
            raise NotFound(f"No served model can do {task}{about}.", param="models", code="no_able_model")
        return [route for name, route in self.routes.items() if name in chosen]

    async def statuses(self, timeout_s: float = 2.0) -> list[Status]:
        """Every model's status; one that does not say within `timeout_s` counts as starting."""

        async def ask(route: Route) -> Status:
            try:
                return await asyncio.wait_for(route.status(), timeout_s)
            except (TimeoutError, ServeError):
                return Status(route.model.name, "starting", "not reachable yet", 0.0)

        return list(await asyncio.gather(*map(ask, self.routes.values())))

    async def events(
        self, task: str, request: Request, deadline: Deadline | None = None
    ) -> AsyncGenerator[Event, None]:
        """Deltas and Replies in the order they come, then Merged. Leaving early stops every model.

        deadline: the request's own seconds from now, where it is left out. Raises what `check` raises before the first
        event; Unavailable when not one model answered, or the merge came too late; the first model's own refusal where
        every model refused the request.
        """
        routes = self.check(task, request)
        judge = self.judge(task, request)
        deadline = deadline or Deadline.after(request.deadline_s)
        column = Column(task, request, deadline.earlier(SHARE) if judge else deadline)
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
        weights = {name: route.model.weight for name, route in self.routes.items()} | (request.weights or {})
        columns = [replies[route.model.name] for route in routes]
        with tracing.begin(f"merge {task}", attributes={"diptych.task": task, "diptych.models": len(columns)}) as span:
            if TASKS[task].heavy or len(columns) > FEW or sum(len(reply.text) for reply in columns) > SHORT:
                merged = await _merged_in_time(task, request, columns, weights, deadline)
            else:
                merged = merge(task, request, columns, weights)
            span.set({"diptych.merge.method": merged.method, "diptych.agreement": merged.agreement})
        if judge is not None:
            merged = await judge.merged(
                request, [reply for reply in columns if answered(reply)], weights, merged, deadline
            )
        yield merged

    def check(self, task: str, request: Request) -> list[Route]:
        """The routes a request will go to. Raises what the client should hear before anything is started."""
        routes = self.able(task, request.models, film=request.video is not None)
        methods = [*TASKS[task].methods, *([JUDGE] if TASKS[task].judging else [])]
        if request.merge is not None and request.merge not in methods:
            raise BadRequest(f"{task} merges by {', '.join(methods)}.", param="merge")
        self.judge(task, request)
        if request.quorum is not None and request.quorum > len(routes):
            raise BadRequest(f"The quorum is larger than the {len(routes)} models asked.", param="quorum")
        for name in request.weights or {}:
            self.route(name, "weights")
        return routes

    def judge(self, task: str, request: Request) -> Judge | None:
        """Who will judge, where that is asked for. Raises BadRequest or NotFound naming `judge` or `merge`.

        The named model; else the first in catalogue order that can chat, is no toy and is ready when it comes to it,
        else the first such toy.
        """
        judging, named = TASKS[task].judging, getattr(request, "judge", None)
        if judging is None or request.merge != JUDGE:
            if named is not None:
                raise BadRequest(f'A judge is asked by "merge": "{JUDGE}".', param="judge")
            return None
        film = request.video is not None
        if named is not None:
            model = self.route(named, "judge").model
            if CHAT not in model.skills:
                raise BadRequest(f"{named} cannot chat, so it cannot judge.", param="judge", code="task_not_supported")
            if not takes(model, film):
                raise BadRequest(unseeing([named], film), param="judge", code=unseen(film))
        able = [
            route
            for name, route in self.routes.items()
            if CHAT in route.model.skills and takes(route.model, film) and named in (None, name)
        ]
        if not able:
            about = " about a video" if film else ""
            raise BadRequest(f"No served model can chat{about}, so none can judge.", param="merge")
        return Judge(judging, sorted(able, key=lambda route: route.model.card.toy))


async def _merged_in_time(
    task: str, request: Request, columns: Sequence[Reply], weights: Mapping[str, float], deadline: Deadline
) -> Merged:
    """`merge` in a thread. Raises Unavailable where that takes longer than MERGE_S past the deadline."""
    try:
        async with asyncio.timeout_at(asyncio.get_running_loop().time() + deadline.left() + MERGE_S):
            return await asyncio.to_thread(merge, task, request, columns, weights)
    except TimeoutError:
        raise deadline.passed("The merge of the replies") from None


def answered(reply: Reply) -> bool:
    """There is something to merge."""
    return reply.status == "ok" and reply.result is not None


def takes(model: Model, film: bool) -> bool:
    """Whether a model can be asked about a film, or about a picture."""
    return model.videos if film else model.images


def unseeing(names: Sequence[str], film: bool) -> str:
    """The refusal of a film, or a picture, in the name of models that do not take it."""
    verb = "takes" if len(names) == 1 else "take"
    return f"{', '.join(names)} {verb} {'images, not video' if film else 'video, not images'}."


def unseen(film: bool) -> str:
    """That refusal's code."""
    return f"{'video' if film else 'image'}_not_supported"


def merge(task: str, request: Request, replies: Sequence[Reply], weights: Mapping[str, float] | None = None) -> Merged:
    """Replies (catalogue order) as one, by the request's method, or the task's own where a judge was asked for.

    weights: per model; the request's own where left out. Raises Unavailable when no reply is ok; its code is that of a
    ParseError where all models spoke, but not to the point: asking again would come to the same.
    """
    good = [reply for reply in replies if answered(reply)]
    if not good:
        said = [(reply.model, reply.error.message) for reply in replies if reply.error]
        why = " ".join(words if model in words else f"{model}: {words}" for model, words in said)
        spoke = all(reply.error is not None and reply.error.code == ParseError.code for reply in replies)
        raise Unavailable(f"No model answered. {why}", code=ParseError.code if spoke else "no_model_answered")
    methods = TASKS[task].methods
    rule = methods.get(request.merge or "", next(iter(methods.values())))
    return rule(good, (request.weights or {}) if weights is None else weights)
