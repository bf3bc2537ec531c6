"""Refuses a fan-out without room, or turns its events into one answer or a stream; counts both in the metrics."""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from serve.api.metrics import Metrics
from serve.errors import Overloaded
from serve.router.route import Route
from serve.router.router import Plan, Router
from serve.tasks import TASKS
from serve.tasks.reply import Event, Merged, Reply, ReplyError, Usage

GRACE_S = 0.1
"""Seconds for which failed replies at the start of a stream are delayed."""


@dataclass(frozen=True)
class Answer:
    """The outcome of a fan-out. replies: in catalogue order."""

    merged: Merged
    replies: list[Reply]

    def usage(self) -> Usage:
        """Return the tokens of all replies and of the judge."""
        return total_usage([*(reply.usage for reply in self.replies), *judge_usage(self.merged)])


def refuse_overload(routes: Sequence[Route], task: str, metrics: Metrics) -> None:
    """Raise Overloaded where every route is full, and count it in the metrics as each model's reply.

    Call it before the image is fetched and decoded: that took four fifths of a refused request's time. With ten times
    the load that a model can take, the gateway did little else.
    """
    if not all(route.full for route in routes):
        return
    errors = {route.model.name: Overloaded.of_model(route.model.name) for route in routes}
    if task in TASKS:
        with metrics.fan_out(task, len(routes)) as meter:
            for name, error in errors.items():
                refusal = ReplyError(code=str(error.code), message=error.message)
                meter.event(Reply(model=name, status="error", error=refusal))
    else:
        for name in errors:
            metrics.reply(name, task, "error", 0.0, code=Overloaded.code)
    raise errors[routes[0].model.name]


async def gather_answer(router: Router, plan: Plan, metrics: Metrics) -> Answer:
    """Run a plan, count its events and return them as one answer. Raises as `Router.run`."""
    replies: dict[str, Reply] = {}
    with metrics.fan_out(plan.task, len(plan.routes)) as meter:
        async with aclosing(router.run(plan, metrics.count_tokens)) as events:
            async for event in events:
                meter.event(event)
                if isinstance(event, Reply):
                    replies[event.model] = event
                elif isinstance(event, Merged):
                    return Answer(event, [replies[route.model.name] for route in plan.routes])
    raise AssertionError("a fan-out ends with its merge or an error")


async def delay_failures(router: Router, plan: Plan, metrics: Metrics) -> AsyncGenerator[Event, None]:
    """Run a plan, count its events and yield them.

    Failed replies are delayed for up to GRACE_S, or until a model has text. Where no model can answer, that is known
    within this time, so the client gets a 503 that it can retry, instead of a 200 and a stream of failures.
    """
    clock = asyncio.get_running_loop().time
    end = clock() + GRACE_S
    delayed: list[Event] = []
    events = router.run(plan, metrics.count_tokens)
    upcoming: asyncio.Future[Event] | None = asyncio.ensure_future(anext(events))
    with metrics.fan_out(plan.task, len(plan.routes)) as meter:
        try:
            while upcoming is not None and (await asyncio.wait({upcoming}, timeout=max(0.0, end - clock())))[0]:
                delayed.append(upcoming.result())
                meter.event(delayed[-1])
                upcoming = asyncio.ensure_future(anext(events)) if _is_failure(delayed[-1]) else None
            for event in delayed:
                yield event
            if upcoming is not None:
                event = await upcoming
                meter.event(event)
                yield event
            async for event in events:
                meter.event(event)
                yield event
        finally:
            if upcoming is not None:
                upcoming.cancel()
                await asyncio.gather(upcoming, return_exceptions=True)
            await events.aclose()


def judge_usage(merged: Merged) -> list[Usage]:
    """Return a judge's token counts; empty where there was none."""
    return [merged.judge.usage] if merged.judge is not None else []


def total_usage(usages: Iterable[Usage]) -> Usage:
    """Return the sum of several token counts."""
    prompt = completion = 0
    for usage in usages:
        prompt, completion = prompt + usage.prompt_tokens, completion + usage.completion_tokens
    return Usage(prompt_tokens=prompt, completion_tokens=completion)


def _is_failure(event: Event) -> bool:
    return isinstance(event, Reply) and event.status != "ok"
