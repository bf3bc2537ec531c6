"""Deals one engine's requests out among its replicas: each image to the one that has seen it, none to a sick one."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import NamedTuple
from weakref import WeakKeyDictionary

from deployments.args import ModelPlacement
from deployments.routing.breaker import Breaker
from deployments.routing.pick import pick_replica
from deployments.routing.replicas import Replicas
from serve.errors import ModelError, Overloaded
from serve.router.route import Status
from serve.transport.connection import Connection

BATCH_SHARE = 0.5
"""The part of a replica's room that batch requests may fill: the rest is free for people who cannot wait."""
ENGINE_DEAD = "engine_dead"
FAULTS = ("engine_error", "internal_error")
"""Codes of failures that are the fault of a replica which lives on."""


class EngineDied(ModelError):
    """A replica's engine or process died while it was answering. server_id: which replica, to tell deaths apart."""

    code = ENGINE_DEAD

    def __init__(self, message: str, server_id: int) -> None:
        super().__init__(message)
        self.server_id = server_id


class RoutingKey(NamedTuple):
    """The properties of a request that decide where it goes.

    image: the digest of its file. batch: it may wait. prompts: the number that the model is asked.
    """

    image: str | None
    batch: bool
    prompts: int = 1


class Pool:
    """One engine's replicas, for the requests of its model and its adapters.

    entry: says how many prompts one replica is given at a time, whether an image stays with one replica, and whether
    Serve stops the last replica of a model that nobody asks.
    """

    def __init__(self, replicas: Replicas, entry: ModelPlacement) -> None:
        self.entry = entry
        self._replicas = replicas
        self._breakers: WeakKeyDictionary[Connection, Breaker] = WeakKeyDictionary()
        self._died: WeakKeyDictionary[Connection, float] = WeakKeyDictionary()
        """Replicas whose engine is dead, and since when; Serve replaces the process, and with it the connection."""
        self._prompts: WeakKeyDictionary[Connection, int] = WeakKeyDictionary()
        """How many of our prompts each replica has now."""
        self._asked: Counter[str] = Counter()

    @contextlib.contextmanager
    def counted(self, model: str) -> Iterator[None]:
        """Count a request of this model as asked, in its status, while the block runs."""
        self._asked[model] += 1
        try:
            yield
        finally:
            self._asked[model] -= 1

    @contextlib.asynccontextmanager
    async def replica(self, model: str, key: RoutingKey) -> AsyncIterator[Connection]:
        """Pick a replica for the request that runs in the block, and learn from how it ends.

        Raises Overloaded where there is no room, ModelError where there is no replica or it was stopped on purpose, and
        EngineDied where it died. What else the block raises is passed on.
        """
        connection = await self._pick(model, key)
        breaker = self._breakers.setdefault(connection, Breaker())
        breaker.started()
        self._prompts[connection] = self._load(connection) + key.prompts
        began = time.monotonic()
        try:
            yield connection
            breaker.succeeded()
        except ConnectionError as error:
            if connection.draining:  # as planned, or given up for its silence or ours: no request has killed it
                stopped = f"The process of {model} was stopped while it was answering; ask again."
                raise ModelError(stopped, code="model_starting") from error
            ended = f"The process of {model} ended while it was answering; it is started again."
            raise EngineDied(ended, connection.server_id) from error
        except ModelError as error:
            if error.code in FAULTS:
                breaker.failed()
            # One that asked an engine which was dead by then has not killed it.
            if error.code == ENGINE_DEAD and began <= self._died.setdefault(connection, time.monotonic()):
                raise EngineDied(error.message, connection.server_id) from error
            raise
        finally:
            self._prompts[connection] -= key.prompts

    async def wait_for_replica(self, seconds: float) -> None:
        """Return once there is a replica, or after `seconds`: a model may be asleep, or may not have begun."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not await self._replicas.available():
                    await asyncio.sleep(0.05)

    def close(self) -> None:
        """Search for no more replicas: no new request will come. Those that run go on."""
        self._replicas.close()

    async def status(self, model: str) -> Status:
        """Return the best status that a replica reported of this model, seconds ago at most, with our own `asked`."""
        available = await self._replicas.available()
        reports: list[tuple[float, Status]] = [
            (replica.last_heard, replica.statuses[model]) for replica in available if model in replica.statuses
        ]
        if not reports:
            since_s = time.monotonic() - self._replicas.none_since
            if available:
                return Status(model, "starting", "waiting for a process that knows it", since_s, self._asked[model])
            if self.entry.sleeps and not self._replicas.waking:
                return Status(model, "asleep", "it starts when it is asked", since_s, self._asked[model])
            step = "starting again: its process ended" if self._replicas.ever_connected else "starting its process"
            return Status(model, "starting", step, since_s, self._asked[model])
        order = ("ready", "starting", "failed")
        at, status = min(reports, key=lambda report: order.index(report[1].state))
        return replace(status, since_s=status.since_s + time.monotonic() - at, asked=self._asked[model])

    async def _pick(self, model: str, key: RoutingKey) -> Connection:
        available = await self._replicas.available()
        if not available and self.entry.sleeps:
            available = await self._replicas.refresh()  # another gateway may have woken it
            if not available:
                self._replicas.wake()
                raise ModelError(f"{model} was asleep and is being started; ask again.", code="model_starting")
        alive = [replica for replica in available if replica not in self._died]
        if not alive:
            raise ModelError(f"{model} is being started again.", code="model_starting")
        knowing = [replica for replica in alive if model in replica.statuses]  # one may be older than the adapter
        if not knowing:
            raise ModelError(f"{model} was added just now and is being started.", code="model_starting")
        healthy = [replica for replica in knowing if not self._rests(replica)]
        if not healthy:
            raise ModelError(f"{model} failed several times in a row and is left alone.", code="model_resting")
        ready = [replica for replica in healthy if replica.statuses[model].state == "ready"]
        room = self.entry.max_ongoing_requests * (BATCH_SHARE if key.batch else 1)
        free = [replica for replica in ready or healthy if self._fits(key.prompts, replica, room)]
        if not free:
            if key.prompts > room:
                raise Overloaded(f"{model} takes {key.prompts} prompts at once only while it answers nothing else.")
            raise Overloaded(f"{model} has too many requests waiting.")
        return pick_replica(free, key.image if self.entry.keeps_pictures else None, self._load)

    def _rests(self, replica: Connection) -> bool:
        return replica in self._breakers and self._breakers[replica].open

    def _load(self, replica: Connection) -> int:
        return self._prompts.get(replica, 0)

    def _fits(self, prompts: int, replica: Connection, room: float) -> bool:
        """Return whether the replica has room for so many prompts. An idle one takes also more than its room."""
        load = self._load(replica)
        return load == 0 or load + prompts <= room
