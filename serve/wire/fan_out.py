"""The events of one fan-out: gathered into one answer, or held until it is known whether there will be one."""

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass

from serve.deadline import Deadline
from serve.router import Router
from serve.tasks.base import Event, Merged, Reply, Request, Usage
from serve.wire.meters import Meters
from serve.wire.pictures import Pictures

GRACE_S = 0.1


@dataclass(frozen=True)
class Answer:
    """Everything one fan-out came to. replies: in catalogue order."""

    merged: Merged
    replies: list[Reply]

    def usage(self) -> Usage:
        """All tokens that were read and spoken, a judge's among them."""
        return total([*(reply.usage for reply in self.replies), *judged(self.merged)])


class FanOut:
    """Asks a router and counts what comes back."""

    def __init__(self, router: Router, meters: Meters, pictures: Pictures) -> None:
        self.router = router
        self.meters = meters
        self.pictures = pictures

    async def events(self, task: str, request: Request, deadline: Deadline) -> AsyncGenerator[Event, None]:
        """The router's events. Failed replies wait up to GRACE_S for a sign of life.

        Where no model can answer at all that is known at once, and the client gets a plain 503, which it can retry,
        in place of a 200 and a stream of failures.
        """
        async with (
            self.pictures.shown(request, deadline) as shown,
            aclosing(self._counted(task, shown, deadline)) as source,
            aclosing(_settled(source)) as kept,
        ):
            async for event in kept:
                yield event

    async def answer(self, task: str, request: Request, deadline: Deadline) -> Answer:
        """The whole answer. Raises Unavailable when not one model answered."""
        replies: dict[str, Reply] = {}
        async with (
            self.pictures.shown(request, deadline) as shown,
            aclosing(self._counted(task, shown, deadline)) as events,
        ):
            async for event in events:
                if isinstance(event, Reply):
                    replies[event.model] = event
                elif isinstance(event, Merged):
                    return Answer(event, [replies[name] for name in self.router.routes if name in replies])
        raise AssertionError("a fan-out ends with its merge or an error")

    async def _counted(self, task: str, request: Request, deadline: Deadline) -> AsyncGenerator[Event, None]:
        with self.meters.fan_out(task) as meter:
            async with aclosing(self.router.events(task, request, deadline)) as events:
                async for event in events:
                    meter.event(event)
                    yield event


def judged(merged: Merged) -> list[Usage]:
    """The judge's tokens, where there was one."""
    return [merged.judge.usage] if merged.judge is not None else []


def total(usages: Iterable[Usage]) -> Usage:
    """Tokens of several replies, summed."""
    prompt = completion = 0
    for usage in usages:
        prompt, completion = prompt + usage.prompt_tokens, completion + usage.completion_tokens
    return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


async def _settled(events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
    held: list[Event] = []
    end = asyncio.get_running_loop().time() + GRACE_S
    coming = asyncio.ensure_future(anext(events))
    try:
        while (left := end - asyncio.get_running_loop().time()) > 0:
            await asyncio.wait({coming}, timeout=left)
            if not coming.done():
                break
            held.append(coming.result())
            if _alive(held[-1]):
                break
            coming = asyncio.ensure_future(anext(events))
        for event in held:
            yield event
        if not (held and _alive(held[-1])):
            yield await coming
        async for event in events:
            yield event
    finally:
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)


def _alive(event: Event) -> bool:
    return not (isinstance(event, Reply) and event.status != "ok")
