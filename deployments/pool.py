"""One model's requests dealt out among its replicas: each picture to the one that knows it, and none to a sick one."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncGenerator, Hashable
from dataclasses import replace
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from deployments.args import Engined
from deployments.breaker import Breaker
from deployments.choice import choose
from deployments.quarantine import Quarantine
from deployments.replicas import Replicas
from serve.errors import ModelError, Overloaded
from serve.router.route import Status
from serve.rpc.connection import Connection

BATCH_SHARE = 0.5
"""How much of a replica's room those may fill who can wait: the rest is free for people who cannot."""
DIED = "engine_dead"
FAULTS = ("engine_error", "internal_error")
"""What a replica that lives fails with by itself."""


class Errand(NamedTuple):
    """What a request is about. picture: its digest. batch: whether it may wait. words: what else tells it apart.
    prompts: how many the model is asked for it."""

    picture: str | None
    batch: bool
    words: Hashable
    prompts: int = 1


class Pool:
    """One engine's replicas, for the requests of its model and its adapters.

    entry: how many prompts one replica is given at a time, whether a picture stays with one, and whether Serve ends
    the last one where nobody asks.
    """

    def __init__(self, handle: Any, entry: Engined) -> None:
        self._replicas = Replicas(handle)
        self.entry = entry
        self._breakers: WeakKeyDictionary[Connection, Breaker] = WeakKeyDictionary()
        self._died: WeakKeyDictionary[Connection, float] = WeakKeyDictionary()
        """Replicas whose engine is dead, and since when; Serve replaces the process, and with it the connection."""
        self._prompts: WeakKeyDictionary[Connection, int] = WeakKeyDictionary()
        """How many of ours each replica has now."""
        self._quarantine = Quarantine()
        self._asked: Counter[str] = Counter()

    async def stream(
        self, model: str, errand: Errand, method: str, *arguments: Any, pace_s: float
    ) -> AsyncGenerator[Any, None]:
        """What the replica's method gives. Leaving early stops the replica's work.

        Raises what the method raised (ServeError), Overloaded where there is no room, ModelError where no replica is
        there or it went away, BadRequest for a request that has killed the engine before.
        """
        watched = self._quarantine.watched(model, errand) if self._quarantine else contextlib.nullcontext()
        self._asked[model] += 1
        try:
            async with (
                watched,
                contextlib.aclosing(self._streamed(model, errand, method, *arguments, pace_s=pace_s)) as items,
            ):
                async for item in items:
                    yield item
        finally:
            self._asked[model] -= 1

    async def meet(self, seconds: float) -> None:
        """Find a replica, or give up after so long: one that sleeps, or that has not begun."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not await self._replicas.live():
                    await asyncio.sleep(0.05)

    def close(self) -> None:
        """Look for no more replicas: nothing new will come. What is being spoken goes on."""
        self._replicas.close()

    async def status(self, model: str) -> Status:
        """The best that a replica said of this model, at most some seconds ago, and what it was asked from here."""
        live = await self._replicas.live()
        known: list[tuple[float, Status]] = [(one.heard, one.standing[model]) for one in live if model in one.standing]
        if not known:
            since_s = time.monotonic() - self._replicas.alone_since
            if live:
                return Status(model, "starting", "waiting for a process that knows it", since_s, self._asked[model])
            if self.entry.sleeps and not self._replicas.knocking():
                return Status(model, "asleep", "it starts when it is asked", since_s, self._asked[model])
            step = "starting again: its process ended" if self._replicas.met else "starting its process"
            return Status(model, "starting", step, since_s, self._asked[model])
        order = ("ready", "starting", "failed")
        at, status = min(known, key=lambda pair: order.index(pair[1].state))
        return replace(status, since_s=status.since_s + time.monotonic() - at, asked=self._asked[model])

    async def _streamed(
        self, model: str, errand: Errand, method: str, *arguments: Any, pace_s: float
    ) -> AsyncGenerator[Any, None]:
        connection = await self._chosen(model, errand)
        breaker = self._breakers.setdefault(connection, Breaker())
        breaker.asked()
        self._prompts[connection] = self._load(connection) + errand.prompts
        items = connection.stream(method, *arguments, pace_s=pace_s)
        spoke, began = False, time.monotonic()
        try:
            async for item in items:
                spoke = True
                yield item
            if not spoke:
                raise ModelError(f"{model} ended without a word.", code="engine_error")
            breaker.answered()
        except ConnectionError as error:
            if connection.leaving:  # as planned, or given up for its silence or ours: no request has killed it
                said = f"The process of {model} was stopped while it was answering; ask again."
                raise ModelError(said, code="model_starting") from error
            self._quarantine.blame(errand, connection.mark)
            said = f"The process of {model} ended while it was answering; it is started again."
            raise ModelError(said, code=DIED) from error
        except ModelError as error:
            if error.code == DIED and began <= self._died.setdefault(connection, time.monotonic()):
                self._quarantine.blame(errand, connection.mark)  # and not who asked an engine that was dead by then
            if error.code in FAULTS:
                breaker.failed()
            raise
        finally:
            self._prompts[connection] -= errand.prompts
            await items.aclose()

    async def _chosen(self, model: str, errand: Errand) -> Connection:
        found = await self._replicas.live()
        if not found and self.entry.sleeps:
            found = await self._replicas.found()  # another gateway may have woken it
            if not found:
                self._replicas.knock()
                raise ModelError(f"{model} was asleep and is being started; ask again.", code="model_starting")
        live = [one for one in found if one not in self._died]
        if not live:
            raise ModelError(f"{model} is being started again.", code="model_starting")
        knowing = [one for one in live if model in one.standing]  # not so one from before an adapter was added
        if not knowing:
            raise ModelError(f"{model} was added just now and is being started.", code="model_starting")
        well = [one for one in knowing if one not in self._breakers or not self._breakers[one].open]
        if not well:
            raise ModelError(f"{model} failed several times in a row and is left alone.", code="model_resting")
        ready = [one for one in well if one.standing[model].state == "ready"]
        room = self.entry.max_ongoing_requests * (BATCH_SHARE if errand.batch else 1)
        free = [one for one in ready or well if self._fits(errand, one, room)]
        if not free:
            if errand.prompts > room:
                raise Overloaded(f"{model} takes {errand.prompts} prompts at once only while it answers nothing else.")
            raise Overloaded(f"{model} has too many requests waiting.")
        return choose(free, errand.picture if self.entry.keeps_pictures else None, self._load)

    def _load(self, replica: Connection) -> int:
        return self._prompts.get(replica, 0)

    def _fits(self, errand: Errand, replica: Connection, room: float) -> bool:
        """Whether the replica has room for it. An idle one takes also what is more than its room."""
        load = self._load(replica)
        return load == 0 or load + errand.prompts <= room
