"""Plans a request, calls all its models concurrently and merges their replies. Imports neither torch nor an engine."""

import asyncio
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from serve.accounting import current_account
from serve.engines.base import ReasoningOptions
from serve.errors import BadRequest, NotFound, ParseError, ServeError
from serve.limits import LIMITS
from serve.models.base import Model
from serve.models.reasoning import reasoning_refusal
from serve.rights import RIGHTS
from serve.router.judge import SHARE, Judge
from serve.router.merge_replies import abstain, is_answer, merge_replies
from serve.router.merge_streams import merge_streams
from serve.router.model_call import CountTokens, ModelCall
from serve.router.route import Deadline, Route, Status
from serve.tasks import TASKS
from serve.tasks.reply import Event, Merged, Reply
from serve.tasks.request import Request, reasoning_options

CHAT = "chat"
JUDGE = "judge"


@dataclass(frozen=True)
class Plan:
    """A checked request to several models.

    routes: the models to call, in catalogue order. judge: writes the merged reply; None where a rule merges. quorum:
    number of good replies after which the others are cut. weights: of each model's reply in the merge.
    """

    task: str
    request: Request
    routes: Sequence[Route]
    judge: Judge | None
    quorum: int
    weights: Mapping[str, float]
    deadline: Deadline


def find_route(routes: Mapping[str, Route], name: str, param: str = "model") -> Route:
    """Return the route of one served model. Raises NotFound naming the served ones, Forbidden as the key's rights."""
    if name not in routes:
        RIGHTS.get().check_model(name, param)
        raise NotFound(
            f"The model {name[:200]!r} is not served here. Served: {', '.join(routes)}.",
            param=param,
            code="model_not_found",
        )
    return routes[name]


def able_routes(
    routes: Mapping[str, Route], task: str, names: Sequence[str] | None, *, video: bool = False
) -> list[Route]:
    """Return the routes of models that can do the task with an image, or with a video, in catalogue order.

    names: the models that the client wants; None for all. Raises NotFound or BadRequest naming `models`.
    """
    there = [route for route in routes.values() if not route.joining] or list(routes.values())
    wanted = there if names is None else [find_route(routes, name, "models") for name in names]
    unable = [route.model.name for route in wanted if task not in route.model.skills]
    if names is not None and unable:
        raise BadRequest(f"{', '.join(unable)} cannot do {task}.", param="models", code="task_not_supported")
    blind = [route.model.name for route in wanted if not takes_media(route.model, video)]
    if names is not None and blind:
        raise unsupported_media(blind, video, "models")
    chosen = {route.model.name for route in wanted} - {*unable, *blind}
    if not chosen:
        about = " about a video" if video else " about an image" if len(unable) < len(wanted) else ""
        raise NotFound(f"No served model can do {task}{about}.", param="models", code="no_able_model")
    return [route for name, route in routes.items() if name in chosen]


def check_limits(task: str, request: Request, routes: Sequence[Route]) -> None:
    """Raise BadRequest naming the field of a request that exceeds a limit of its key (serve/limits.py).

    All requests of tasks come here, by whichever route; a chat with one model does not (`ModelCompletion`). A chat's
    client reads the chat's name of the field in its place.
    """
    limits = LIMITS.get()
    if limits.max_models is not None and len(routes) > limits.max_models:
        raise BadRequest(
            f"The request asks {len(routes)} models; it may ask at most {limits.max_models}: name fewer.",
            param="models",
            code="too_many_models",
        )
    field = TASKS[task].text_field
    count = len(TASKS[task].texts(request)) if TASKS[task].takes_phrases else 0
    if field is not None and count > limits.max_labels:
        raise BadRequest(
            f"The request names {count} labels; it may name at most {limits.max_labels}: "
            "name fewer, or send several requests.",
            param=field.name,
            code="too_many_labels",
        )


def suited(routes: Sequence[Route], task: str, request: Request) -> Sequence[Route]:
    """Return the routes of models that a request which names none is for; all of them where it is for none."""
    return [route for route in routes if route.model.skills[task].suits(request)] or routes


def spotting(routes: Sequence[Route], task: str, request: Request) -> Sequence[Route]:
    """Return the routes of models that do what the request asks of its text: all, or where it has `boxes`, those that
    spot it. Raises BadRequest naming `models` or `boxes` where a named model does not, or none does."""
    if not getattr(request, "boxes", False):
        return routes
    able = [route for route in routes if route.model.skills[task].spots]
    unable = [route.model.name for route in routes if not route.model.skills[task].spots]
    if unable and (request.models or not able):
        verb = "read" if len(unable) > 1 else "reads"
        raise BadRequest(
            f"{', '.join(unable)} {verb} text and cannot say where it stands.",
            param="models" if request.models else "boxes",
            code="task_not_supported",
        )
    return able


def choose_judge(routes: Mapping[str, Route], task: str, request: Request) -> Judge | None:
    """Return the judge, or None where the client wants none. Raises BadRequest or NotFound naming `judge` or `merge`.

    Its candidates are the named model, or else all that can chat, in catalogue order with toys last.
    """
    judging, named = TASKS[task].judging, getattr(request, "judge", None)
    if judging is None or request.merge != JUDGE:
        if named is not None:
            raise BadRequest(f'A judge is asked by "merge": "{JUDGE}".', param="judge")
        return None
    video = request.video is not None
    if named is not None:
        model = find_route(routes, named, "judge").model
        if CHAT not in model.skills:
            raise BadRequest(f"{named} cannot chat, so it cannot judge.", param="judge", code="task_not_supported")
        if not takes_media(model, video):
            raise unsupported_media([named], video, "judge")
    able = [
        route
        for name, route in routes.items()
        if CHAT in route.model.skills and takes_media(route.model, video) and named in (None, name)
    ]
    if not able:
        about = " about a video" if video else ""
        raise BadRequest(f"No served model can chat{about}, so none can judge.", param="merge")
    return Judge(judging, sorted(able, key=lambda route: route.model.card.toy))


def check_reasoning(models: Sequence[Model], options: ReasoningOptions) -> None:
    """Raise BadRequest naming the parameter where none of the models can follow it: of several, some answer as ever."""
    refused = [reasoning_refusal(model.reasoning, options) for model in models]
    if refused[0] is not None and None not in refused:
        param, why = refused[0]
        of_many = "" if len(models) == 1 else "No model that is asked can follow it: "
        raise BadRequest(f"{of_many}{models[0].name} {why}.", param=param, code="unsupported_parameter")


def takes_media(model: Model, video: bool) -> bool:
    """Return whether a model takes_media videos (video=True) or images."""
    return model.videos if video else model.images


def unsupported_media(names: Sequence[str], video: bool, param: str) -> BadRequest:
    """Return the error for models that do not take videos (video=True) or images."""
    verb = "takes" if len(names) == 1 else "take"
    message = f"{', '.join(names)} {verb} {'images, not video' if video else 'video, not images'}."
    return BadRequest(message, param=param, code=f"{'video' if video else 'image'}_not_supported")


class Router:
    """Fans requests out over routes.

    routes: by model, in catalogue order, which is the order of all results.
    """

    def __init__(self, routes: Sequence[Route]) -> None:
        self.routes = {route.model.name: route for route in routes}

    def restricted(self, names: Collection[str] | None) -> "Router":
        """Return a router of these models alone; None: of all."""
        return self if names is None else Router([route for name, route in self.routes.items() if name in names])

    async def statuses(self, timeout_s: float = 2.0) -> list[Status]:
        """Return every model's status; a model that does not answer within `timeout_s` counts as starting."""

        async def ask(route: Route) -> Status:
            try:
                return await asyncio.wait_for(route.status(), timeout_s)
            except (TimeoutError, ServeError):
                return Status(route.model.name, "starting", "not reachable yet", 0.0)

        return list(await asyncio.gather(*map(ask, self.routes.values())))

    def plan(
        self, task: str, request: Request, *, routes: Sequence[Route] | None = None, arrived: float | None = None
    ) -> Plan:
        """Check a request and return its plan. Raises BadRequest, NotFound or Forbidden naming the field.

        routes: from `able_routes`, where they are known. arrived: time of the request's head by the event loop's clock;
        default: now.
        """
        RIGHTS.get().check_task(task, "task")
        if routes is None:
            routes = able_routes(self.routes, task, request.models, video=request.video is not None)
            routes = routes if request.models else suited(routes, task, request)
        routes = spotting(routes, task, request)
        check_limits(task, request, routes)
        check_reasoning([route.model for route in routes], reasoning_options(request))
        methods = [*TASKS[task].methods, *([JUDGE] if TASKS[task].judging else [])]
        if request.merge is not None and request.merge not in methods:
            raise BadRequest(f"{task} merges by {', '.join(methods)}.", param="merge")
        judge = choose_judge(self.routes, task, request)
        quorum = len(routes) if request.quorum is None else request.quorum
        if quorum > len(routes):
            raise BadRequest(f"The quorum is larger than the {len(routes)} models asked.", param="quorum")
        for name in request.weights or {}:
            find_route(self.routes, name, "weights")
        weights = {name: route.model.weight_in(task) for name, route in self.routes.items()} | (request.weights or {})
        deadline = Deadline.after(request.deadline_s, arrived)
        account = current_account()
        account.task = task
        if account.contents is not None:
            account.contents.add_texts(TASKS[task].texts(request))
        return Plan(task, request, routes, judge, quorum, weights, deadline)

    async def run(self, plan: Plan, count: CountTokens | None = None) -> AsyncGenerator[Event, None]:
        """Yield deltas and replies as they come, then the merged reply. Closing early stops every model.

        Raises Unavailable when no model answered or the merge took too long, and the first refusal where models refused
        the request and the replies of all others could not be parsed.

        count: counts the judge's tokens. No event has them where the run is cancelled while the judge writes.
        """
        deadline = plan.deadline if plan.judge is None else plan.deadline.earlier(SHARE)
        calls = [ModelCall(route.model.name, plan.task, deadline) for route in plan.routes]
        answers = [
            call.span.parent_of(route.answer(plan.task, plan.request))
            for call, route in zip(calls, plan.routes, strict=True)
        ]
        try:
            async with aclosing(merge_streams(answers, deadline.at)) as streams:
                async for index, item in streams:
                    if calls[index].reply is not None:  # its stream has ended after its reply
                        continue
                    event = calls[index].event(item)
                    yield event
                    if isinstance(event, Reply) and _enough(calls, plan.quorum):
                        break
                for call in calls:
                    if call.reply is None:
                        yield call.given_up(plan.quorum)
        finally:
            for call in calls:
                call.close()
        yield await _merged(plan, calls, count)


def _enough(calls: Sequence[ModelCall], quorum: int) -> bool:
    """Return whether the quorum is reached, or every model has replied."""
    replies = [call.reply for call in calls if call.reply is not None]
    return len(replies) == len(calls) or sum(reply.status == "ok" for reply in replies) >= quorum


async def _merged(plan: Plan, calls: Sequence[ModelCall], count: CountTokens | None) -> Merged:
    refusals = [call.refusal for call in calls if call.refusal is not None]
    replies = [call.reply for call in calls if call.reply is not None]
    unreadable = sum(reply.error is not None and reply.error.code == ParseError.code for reply in replies)
    if refusals and len(refusals) + unreadable == len(calls):  # the request is at fault: a retry would not help
        refusal = refusals[0]
        if refusal.param in ("question", "response_format"):  # an engine knows no task's fields
            text_field = TASKS[plan.task].text_field
            refusal.param = text_field.name if text_field else None
        raise refusal
    merged = await merge_replies(plan.task, plan.request, replies, plan.weights, plan.deadline)
    if plan.judge is None:
        return merged
    answers = [reply for reply in replies if is_answer(reply)]
    judged = await plan.judge.merged(plan.request, answers, plan.weights, merged, plan.deadline, count)
    return abstain(judged, plan.request.min_agreement)
