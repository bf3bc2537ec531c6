"""A replica's part in its group: it wakes its engine and puts it to sleep as ordered, and tells requests what they wait
for."""

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator
from typing import Any, Protocol, TypeVar

from deployments.groups.gate import Gate
from deployments.groups.policy import Kind, MemberReport, Order, Phase
from serve.engines.base import State, Wakes
from serve.errors import ModelError, ServeError
from serve.tasks.reply import Waiting

log = logging.getLogger(__name__)

REPORT_S = 0.1
"""Shortest time between two reports: a busy model's requests come and go more often."""
RETRY_S = 0.5
"""Seconds between two tries to reach the scheduler."""
SWITCH_S = 300.0
"""The longest time that an engine takes to wake, or to fall asleep; its process is replaced then."""

START_S = 900.0
"""The longest time that a first start goes on without a step of progress: steps are small, but for loading weights and
compiling."""

Item = TypeVar("Item")


class Sleeper(Protocol):
    """An engine that can sleep. Both raise ModelError where that fails, which leaves the engine unusable."""

    def sleep(self) -> Coroutine[Any, Any, None]: ...

    def wake(self) -> Coroutine[Any, Any, None]: ...


class Link(Protocol):
    """A connection to the scheduler: `stream` calls its `join` or `report`. Raises ConnectionError where it is lost."""

    def stream(self, method: str, *arguments: Any) -> AsyncGenerator[Any, None]: ...


class Member:
    """A model of a group.

    start: starts the engine for the first time; returns why that failed, None where it has not. connect: returns a
    link, or None while there is no scheduler. mark: shows the model's state and step. retries: the seconds to wait
    before each further try of a first start that failed.

    wakes: how often it woke after its first start, and how long the last time took; None where it never did. broken:
    the error with which waking or sleeping failed; the process then has to be replaced.
    """

    def __init__(
        self,
        name: str,
        engine: Sleeper,
        *,
        at_once: int,
        start: Callable[[], Awaitable[str | None]],
        connect: Callable[[], Awaitable[Link | None]],
        mark: Callable[[State, str], None],
        retries: Iterator[float],
    ) -> None:
        self.name = name
        self.wakes: Wakes | None = None
        self.broken: ModelError | None = None
        self.tried = asyncio.Event()
        """Set once a first start has ended, in success or not."""
        self.started = asyncio.Event()
        """Set once one has ended in success."""
        self.phase: Phase = "new"
        self.loaded = False
        """True while the engine is awake, so that it can be checked; False as soon as it falls asleep."""
        self._key = uuid.uuid4().hex
        self._engine, self._start, self._connect, self._mark = engine, start, connect, mark
        self._retries = retries
        self._reportable = asyncio.Event()
        self._gate = Gate(at_once, self._reportable.set)
        self._clock = self._gate.clock
        self._order = Order(0, awake=False)
        self._followed = 0
        self._ordered = asyncio.Event()
        self._woke_at = self._progressed_at = self._clock()
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._listen()), loop.create_task(self._follow())]

    def progressed(self) -> None:
        """Note that the first start goes on. May be called from any thread."""
        self._progressed_at = self._clock()

    async def in_turn(
        self, stream: AsyncGenerator[Item, None], kind: Kind, model: str
    ) -> AsyncGenerator[Item | Waiting, None]:
        """Yield what the stream yields, once the engine is awake; until then, what it waits for, each time that
        changes.

        model: who the stream is of, this model or an adapter. Raises ModelError where the engine cannot be woken.
        """
        async with contextlib.aclosing(stream):
            ticket = self._gate.enter(kind)
            try:
                last = ""
                while not ticket.admitted:
                    if self._gate.failure is not None:
                        raise self._gate.failure
                    if (notice := self.notice()) != last:
                        last = notice
                        yield Waiting(model, notice)
                    else:
                        ticket.news.clear()
                        await ticket.news.wait()
                async for item in stream:
                    yield item
            finally:
                self._gate.leave(ticket)

    def notice(self) -> str:
        """Return what waiting requests wait for, as a clause."""
        if self.phase in ("awake", "leaving") and self._order.awake:
            return f"{self.name} has as many requests as it takes at once"
        if self.phase == "waking":
            return f"{self.name} is being {'woken' if self.started.is_set() else 'started'}{self._last()}"
        state = "is asleep" if self.started.is_set() else "is not loaded yet"
        return f"{self.name} {state}: {self._order.notice or 'it waits for its turn'}"

    def report(self) -> MemberReport:
        """Return its present state."""
        gate = self._gate
        return MemberReport(
            self.phase,
            self._followed,
            gate.waited_s("interactive"),
            gate.waited_s("batch"),
            gate.running(),
            self._clock() - gate.idle_since,
            self._clock() - self._woke_at,
            self.wakes.last_s if self.wakes else 0.0,
        )

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _listen(self) -> None:
        """Take orders and send reports, as long as there is a scheduler; without one the engine stays as it is."""
        while True:
            with contextlib.suppress(OSError, ServeError):  # ConnectionError and TimeoutError are kinds of OSError
                if (link := await self._connect()) is not None:
                    reporting = asyncio.create_task(self._keep_reporting(link))
                    try:
                        joined = link.stream("join", self._key, self.name, self.report())
                        async with contextlib.aclosing(joined) as orders:
                            async for order in orders:
                                self._take(order)
                    finally:
                        reporting.cancel()
            await asyncio.sleep(RETRY_S)

    async def _keep_reporting(self, link: Link) -> None:
        while True:
            await self._reportable.wait()
            self._reportable.clear()
            with contextlib.suppress(ConnectionError, ServeError):  # the stream of orders ends with the connection
                async for _ in link.stream("report", self._key, self.report()):
                    pass
            await asyncio.sleep(REPORT_S)

    def _take(self, order: Order) -> None:
        self._order = order
        self._ordered.set()
        self._gate.tell()

    async def _follow(self) -> None:
        """Follow the newest order, one after the other."""
        while self.broken is None:
            await self._ordered.wait()
            self._ordered.clear()
            if self._order.number == self._followed:
                continue
            self._followed = self._order.number
            if self._order.awake and self.phase in ("new", "asleep"):
                await self._wake()
            elif not self._order.awake and self.phase == "awake":
                await self._sleep()
            self._reportable.set()

    async def _wake(self) -> None:
        first = self.phase == "new"
        self._enter("waking")
        began = self._clock()
        try:
            if first:
                try:
                    failure = await self._start_in_time()
                finally:
                    self.tried.set()
                if failure is not None:
                    self._fail(failure)
                    return
                self.started.set()
            else:
                self._mark("asleep", f"waking{self._last()}")
                await _in_time(self._engine.wake(), "woken")
        except ModelError as error:
            self._break(error)
            return
        self._woke_at = self._clock()
        self.loaded = True
        if not first:
            self.wakes = Wakes(1 if self.wakes is None else self.wakes.count + 1, self._woke_at - began)
        self._mark("ready", "ready")
        self._enter("awake")
        self._gate.open()  # also after failures

    async def _start_in_time(self) -> str | None:
        """Return why the first start failed. Raises ModelError where it stood still for START_S."""
        starting = asyncio.ensure_future(self._start())
        self.progressed()
        while (left := self._progressed_at + START_S - self._clock()) > 0:
            if (await asyncio.wait({starting}, timeout=left))[0]:
                return starting.result()
        starting.cancel()
        raise ModelError(f"its start made no progress for {START_S:g} s.", code="engine_dead")

    async def _sleep(self) -> None:
        self._enter("leaving")
        self._mark("asleep", "finishing its requests, then it sleeps")
        await self._gate.close()
        self.loaded = False
        try:
            await _in_time(self._engine.sleep(), "fallen asleep")
        except ModelError as error:
            self._break(error)
            return
        self._enter("asleep")
        self._mark("asleep", f"it wakes when it is asked{self._last()}")

    def _fail(self, why: str) -> None:
        """Fail all requests until the next try to start, for which it joins the others that wait."""
        pause = next(self._retries)
        self._mark("failed", again(why, pause))
        self._enter("failed")
        self._gate.fail(ModelError(f"{self.name} cannot answer: {why}", code="model_failed"))
        asyncio.get_running_loop().call_later(pause, self._enter, "new")

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self._reportable.set()
        self._gate.tell()

    def _break(self, error: ModelError) -> None:
        """Fail all requests. The place is kept until this process has ended, and with it what the engine holds."""
        log.error("%s cannot sleep or wake: %s", self.name, error.message)
        self.broken = error
        self._gate.fail(ModelError(f"{self.name} is being started again: {error.message}", code="model_starting"))

    def _last(self) -> str:
        return f"; that took {self.wakes.last_s:.1f} s the last time" if self.wakes else ""


def again(why: str, pause_s: float) -> str:
    """Return why a model could not be loaded, and when it is tried again."""
    return f"{why} It is tried again after {pause_s:g} s."


async def _in_time(switch: Coroutine[Any, Any, None], done: str) -> None:
    """Wait until an engine has woken, or fallen asleep. Raises ModelError where it has not within SWITCH_S."""
    try:
        async with asyncio.timeout(SWITCH_S):
            await switch
    except ModelError:
        raise
    except TimeoutError:
        raise ModelError(f"its engine has not {done} within {SWITCH_S:g} s.", code="engine_dead") from None
    except Exception as error:  # any: the others of the group must get their turns
        log.exception("an engine has not %s", done)
        raise ModelError(f"its engine has not {done}: {type(error).__name__}.", code="engine_dead") from error
