"""Runs a group's policy, and sends each member its orders. Knows neither Ray nor sockets."""

import asyncio
from collections.abc import AsyncGenerator, Collection

from deployments.args import GroupArgs
from deployments.groups.policy import MemberReport, Order, TurnPolicy

TICK_S = 0.1
"""Seconds between two decisions while members wait."""


class Scheduler:
    """The scheduler of one group, on the event loop's clock.

    It keeps nothing: a new one learns from its members' reports who is awake.
    """

    def __init__(self, args: GroupArgs, members: Collection[str]) -> None:
        self._clock = asyncio.get_running_loop().time
        self.policy = TurnPolicy(args, members, self._clock())
        self._changed: dict[str, asyncio.Event] = {}
        self._reported = asyncio.Event()
        self._deciding = asyncio.get_running_loop().create_task(self._decide())

    async def join(self, key: str, name: str, report: MemberReport) -> AsyncGenerator[Order, None]:
        """Add a member while its stream lasts, and yield its orders: the present one, then each that differs."""
        changed = self._changed[key] = asyncio.Event()
        self.policy.join(key, name, report, self._clock())
        self._reported.set()
        last: Order | None = None
        try:
            while True:
                order = self.policy.places[key].order
                if order != last:
                    last = order
                    yield order
                else:
                    await changed.wait()
                    changed.clear()
        finally:
            if self._changed.get(key) is changed:  # else it has joined again, before this end was noticed
                del self._changed[key]
                self.policy.lose(key, self._clock())
                self._reported.set()

    async def report(self, key: str, report: MemberReport) -> AsyncGenerator[Order, None]:
        """Take a member's report. Yields nothing: its orders come from `join`."""
        self.policy.report(key, report, self._clock())
        self._reported.set()
        return
        yield

    @property
    def runs(self) -> bool:
        """False once it was stopped, or has failed."""
        return not self._deciding.done()

    def stop(self) -> None:
        self._deciding.cancel()

    async def _decide(self) -> None:
        while True:
            self._reported.clear()
            for key in self.policy.decide(self._clock()):
                if key in self._changed:
                    self._changed[key].set()
            try:
                async with asyncio.timeout(None if self.policy.settled else TICK_S):
                    await self._reported.wait()
            except TimeoutError:
                pass
