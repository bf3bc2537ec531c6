"""A group of simulated models on a simulated clock: the real members, gates, scheduler and policy; no processes."""

import asyncio
import contextlib
import itertools
import math
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from deployments.args import GroupArgs
from deployments.groups.member import Link, Member
from deployments.groups.policy import Kind
from deployments.groups.scheduler import Scheduler
from serve.engines.base import State
from serve.errors import ModelError
from serve.tasks.reply import Waiting


class Engine:
    """An engine that sleeps and wakes in these times, and notes when it does. fault: raised by `wake`.

    hangs: it never wakes, or never falls asleep.
    """

    def __init__(self, group: "Group", name: str, wake_s: float, sleep_s: float) -> None:
        self.group, self.name, self.wake_s, self.sleep_s = group, name, wake_s, sleep_s
        self.state: State = "starting"
        self.step = ""
        self.usable = False
        self.running = 0
        self.fault: Exception | None = None
        self.hangs = False
        self.failure: str | None = None

    async def start(self) -> str | None:
        if self.failure is None:
            await self._load()
        return self.failure

    async def wake(self) -> None:
        self.group.wakes.append((self.group.now(), self.name))
        if self.fault is not None:
            raise self.fault
        await self._load()

    async def sleep(self) -> None:
        assert not self.running, f"{self.name} sleeps with requests in its engine"
        assert not self.group.members[self.name].loaded, "it would be checked, and found dead, while it stops"
        self.usable = False
        self.group.awake_times.append(self.group.now() - self.awake_since)
        await asyncio.sleep(math.inf if self.hangs else self.sleep_s)
        self.group.loaded.discard(self)

    async def _load(self) -> None:
        self.group.loaded.add(self)
        assert len(self.group.loaded) <= self.group.args.awake, "more engines than the memory holds"
        await asyncio.sleep(math.inf if self.hangs else self.wake_s)
        self.usable = True
        self.awake_since = self.group.now()

    async def answer(self, seconds: float) -> AsyncGenerator[str, None]:
        assert self.usable and self.group.members[self.name].loaded, f"{self.name} is asked in its sleep"
        self.running += 1
        try:
            await asyncio.sleep(seconds)
            yield "a word"
        finally:
            self.running -= 1


class DirectLink:
    """A link to a scheduler in this process. It can be cut, as a connection is lost."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.lost = asyncio.Event()

    async def stream(self, method: str, *arguments: Any) -> AsyncGenerator[Any, None]:
        async with contextlib.aclosing(getattr(self.scheduler, method)(*arguments)) as items:
            while True:
                waits = [asyncio.ensure_future(wait) for wait in (anext(items, None), self.lost.wait())]
                try:
                    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for wait in waits:
                        wait.cancel()
                    item, lost = await asyncio.gather(*waits, return_exceptions=True)
                if lost is True:
                    raise ConnectionError("cut")
                if item is None:
                    return
                yield item


@dataclass
class Answer:
    """A request's outcome. waited_s: until it went to the engine. notices: what it waited for."""

    model: str
    began: float
    waited_s: float
    notices: list[str]
    error: str = ""


class Group:
    """Simulated models. wakes: (time, name) of each waking after the first starts; awake_times: of each that ended."""

    def __init__(self, names: Sequence[str], args: GroupArgs, *, wake_s: float = 1.0, sleep_s: float = 0.2) -> None:
        self.args, self.names, self.wake_s, self.sleep_s = args, list(names), wake_s, sleep_s
        self.now = asyncio.get_running_loop().time
        self.wakes: list[tuple[float, str]] = []
        self.awake_times: list[float] = []
        self.loaded: set[Engine] = set()
        self.links: dict[str, DirectLink] = {}
        self.engines: dict[str, Engine] = {}
        self.members: dict[str, Member] = {}
        self.scheduler: Scheduler | None = Scheduler(args, names)
        for name in names:
            self.add(name)

    def add(self, name: str) -> None:
        """Start a model's process, in place of the one before."""
        engine = Engine(self, name, self.wake_s, self.sleep_s)

        async def connect() -> Link | None:
            if self.scheduler is None:
                return None
            self.links[name] = DirectLink(self.scheduler)
            return self.links[name]

        def mark(state: State, step: str) -> None:
            engine.state, engine.step = state, step

        self.engines[name] = engine
        self.members[name] = Member(
            name,
            engine,
            at_once=self.args.max_running,
            start=engine.start,
            connect=connect,
            mark=mark,
            retries=itertools.repeat(60.0),
        )

    def kill(self, name: str) -> None:
        """End a model's process; its engine ends a second later, which frees the memory."""
        self.members[name].stop()
        self.links[name].lost.set()
        asyncio.get_running_loop().call_later(1.0, self.loaded.discard, self.engines[name])

    def kill_scheduler(self) -> None:
        assert self.scheduler is not None
        self.scheduler.stop()
        self.scheduler = None
        for link in self.links.values():
            link.lost.set()

    def restart_scheduler(self) -> None:
        self.scheduler = Scheduler(self.args, self.names)

    async def ask(self, name: str, seconds: float = 0.2, kind: Kind = "interactive") -> Answer:
        """Ask a model; its engine takes so many seconds."""
        began = self.now()
        answer = Answer(name, began, 0.0, [])
        engine, member = self.engines[name], self.members[name]

        async def stream() -> AsyncGenerator[str, None]:
            answer.waited_s = self.now() - began
            async with contextlib.aclosing(engine.answer(seconds)) as pieces:
                async for word in pieces:
                    yield word

        try:
            async with contextlib.aclosing(member.in_turn(stream(), kind, name)) as items:
                async for item in items:
                    if isinstance(item, Waiting):
                        answer.notices.append(item.message)
        except ModelError as error:
            answer.error = error.message
        return answer

    async def started(self) -> None:
        """Return once every model was started once, or could not be."""
        for member in self.members.values():
            await member.tried.wait()
        await asyncio.sleep(2)

    def most_wakes_a_minute(self) -> int:
        """Return the largest number of wakings in any minute."""
        times = [time for time, _ in self.wakes]
        return max((sum(start <= time < start + 60 for time in times) for start in times), default=0)

    def stop(self) -> None:
        for member in self.members.values():
            member.stop()
        if self.scheduler is not None:
            self.scheduler.stop()


@contextlib.asynccontextmanager
async def grouped(count: int, awake: int, *, wake_s: float = 1.0, **settings: Any) -> AsyncIterator[Group]:
    """Run a group of `count` models, a, b, c ..., each started once."""
    names = [chr(ord("a") + at) for at in range(count)]
    group = Group(names, GroupArgs(awake=awake, **settings), wake_s=wake_s)
    try:
        await group.started()
        yield group
    finally:
        group.stop()
