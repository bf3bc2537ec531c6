"""Calls all models of a request concurrently and merges their replies. Imports neither torch nor an engine."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from serve.errors import BadRequest, ParseError, ServeError
from serve.router.deadline import Deadline
from serve.router.judge import SHARE
from serve.router.merge_replies import is_answer, merge_replies
from serve.router.merge_streams import merge_streams
from serve.router.model_call import ModelCall
from serve.router.plan import JUDGE, Plan, able_routes, check_limits, check_reasoning, choose_judge, find_route, suited
from serve.router.route import Route, Status
from serve.tasks import TASKS
from serve.tasks.base import Event, Merged, Reply, Request, reasoning_options


class Router:
    """Fans requests out over routes.

    routes: by model, in catalogue order, which is the order of all results.
    """

    def __init__(self, routes: Sequence[Route]) -> None:
        self.routes = {route.model.name: route for route in routes}

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
        """Check a request and return its plan. Raises BadRequest or NotFound naming the field.

        routes: from `able_routes`, where they are known. arrived: time of the request's head by the event loop's clock;
        default: now.
        """
        if routes is None:
            routes = able_routes(self.routes, task, request.models, video=request.video is not None)
            routes = routes if request.models else suited(routes, task, request)
        check_limits(request, routes)
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
        weights = {name: route.model.weight for name, route in self.routes.items()} | (request.weights or {})
        deadline = Deadline.after(request.deadline_s, arrived)
        return Plan(task, request, routes, judge, quorum, weights, deadline)

    async def run(self, plan: Plan) -> AsyncGenerator[Event, None]:
        """Yield deltas and replies as they come, then the merged reply. Closing early stops every model.

        Raises Unavailable when no model answered or the merge took too long, and the first refusal where models refused
        the request and the replies of all others could not be parsed.
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
        yield await _merged(plan, calls)


def _enough(calls: Sequence[ModelCall], quorum: int) -> bool:
    """Return whether the quorum is reached, or every model has replied."""
    replies = [call.reply for call in calls if call.reply is not None]
    return len(replies) == len(calls) or sum(reply.status == "ok" for reply in replies) >= quorum


async def _merged(plan: Plan, calls: Sequence[ModelCall]) -> Merged:
    refusals = [call.refusal for call in calls if call.refusal is not None]
    replies = [call.reply for call in calls if call.reply is not None]
    unreadable = sum(reply.error is not None and reply.error.code == ParseError.code for reply in replies)
    if refusals and len(refusals) + unreadable == len(calls):  # the request is at fault: a retry would not help
        refusal = refusals[0]
        if refusal.param in ("question", "response_format"):  # an engine knows no task's fields
            text_field = TASKS[plan.task].text_field
            refusal.param = text_field and text_field.name
        raise refusal
    merged = await merge_replies(plan.task, plan.request, replies, plan.weights, plan.deadline)
    if plan.judge is None:
        return merged
    answers = [reply for reply in replies if is_answer(reply)]
    return await plan.judge.merged(plan.request, answers, plan.weights, merged, plan.deadline)
