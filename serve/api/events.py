"""The events of one fan-out on their way out: counted, held back while models only fail, gathered into one answer."""

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass

from serve.api.metrics import Metrics
from serve.router.plan import Plan
from serve.tasks.base import Event, Merged, Reply, Usage

GRACE_S = 0.1


@dataclass(frozen=True)
class Answer:
    """Everything that one fan-out came to. replies: in catalogue order."""

    merged: Merged
    replies: list[Reply]

    def usage(self) -> Usage:
        """Return all tokens that were read and generated, a judge's among them."""
        return total_usage([*(reply.usage for reply in self.replies), *judge_usage(self.merged)])


async def gathered(plan: Plan, events: AsyncGenerator[Event, None], metrics: Metrics) -> Answer:
    """Count the events and return them as one answer. Raises what they raise."""
    replies: dict[str, Reply] = {}
    with metrics.fan_out(plan.task) as meter:
        async with aclosing(events):
            async for event in events:
                meter.event(event)
                if isinstance(event, Reply):
                    replies[event.model] = event
                elif isinstance(event, Merged):
                    return Answer(event, [replies[route.model.name] for route in plan.routes])
    raise AssertionError("a fan-out ends with its merge or an error")


async def settled(plan: Plan, events: AsyncGenerator[Event, None], metrics: Metrics) -> AsyncGenerator[Event, None]:
    """Count the events and yield them. Failed replies are held back for up to GRACE_S, until a model speaks.

    Where no model can answer at all that is known at once, and the client gets a plain 503, which it can retry, in
    place of a 200 and a stream of failures.
    """
    clock = asyncio.get_running_loop().time
    end = clock() + GRACE_S
    held: list[Event] = []
    coming: asyncio.Future[Event] | None = asyncio.ensure_future(anext(events))
    with metrics.fan_out(plan.task) as meter:
        try:
            while coming is not None and (await asyncio.wait({coming}, timeout=max(0.0, end - clock())))[0]:
                held.append(coming.result())
                meter.event(held[-1])
                coming = asyncio.ensure_future(anext(events)) if _is_failure(held[-1]) else None
            for event in held:
                yield event
            if coming is not None:
                event = await coming
                meter.event(event)
                yield event
            async for event in events:
                meter.event(event)
                yield event
        finally:
            if coming is not None:
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)
            await events.aclose()


def judge_usage(merged: Merged) -> list[Usage]:
    """Return the judge's tokens, where there was one."""
    return [merged.judge.usage] if merged.judge is not None else []


def total_usage(usages: Iterable[Usage]) -> Usage:
    """Return the tokens of several replies, summed."""
    prompt = completion = 0
    for usage in usages:
        prompt, completion = prompt + usage.prompt_tokens, completion + usage.completion_tokens
    return Usage(prompt_tokens=prompt, completion_tokens=completion)


def _is_failure(event: Event) -> bool:
    return isinstance(event, Reply) and event.status != "ok"
