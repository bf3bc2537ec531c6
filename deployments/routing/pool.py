"""Spreads an engine's requests over its replicas: an image goes to the one that has it cached, none to failing ones."""

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol, TypeVar
from weakref import WeakKeyDictionary

from deployments.args import ModelPlacement
from deployments.routing.replicas import Replicas
from serve.engines.base import State
from serve.errors import ModelError, Overloaded
from serve.router.route import Status
from serve.transport.connection import Connection
from serve.transport.messages import Refused, Room

BATCH_SHARE = 0.5
"""Share of max_ongoing_requests that batch requests may use; the rest is for interactive ones."""
REFUSED_S = 0.1
"""Seconds for which a replica that was full, with other gateways' prompts, is asked no more for as much room."""
ENGINE_DEAD = "engine_dead"
FAULTS = ("engine_error", "internal_error")
"""Codes of failures that count against a replica that still runs."""
FAILURES, REST_S = 5, 5.0
CROWDED = 1.25
"""Load, relative to the average, from which on a replica's images go to another one (bounded loads, arXiv 1608.01350,
section 1: with a quarter above the average nearly every request stays in its place)."""
_WORD = (1 << 64) - 1
_ODD = 0x9E3779B97F4A7C15  # 2^64 by the golden ratio: multiplying by it spreads neighbours over the whole word


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

    def room(self, max_ongoing_requests: int) -> Room:
        """Return the part that it takes of a replica."""
        return Room(self.prompts, max_ongoing_requests * (BATCH_SHARE if self.batch else 1))


class Hindrance(NamedTuple):
    """The reason why a model has no process. failed: Serve does not try again by itself."""

    failed: bool
    why: str


class Pool:
    """The replicas of one engine, which serve its model and its LoRA adapters.

    entry: the engine's settings. Used here: max_ongoing_requests, keeps_pictures and whether it may sleep. hindrance:
    why Serve has no replica of it, as far as is known. joining: models added while others served, until they are
    loaded.
    """

    def __init__(self, replicas: Replicas, entry: ModelPlacement) -> None:
        self.entry = entry
        self.hindrance: Hindrance | None = None
        self.joining: set[str] = set()
        self._replicas = replicas
        self._breakers: WeakKeyDictionary[Connection, Breaker] = WeakKeyDictionary()
        self._died: WeakKeyDictionary[Connection, float] = WeakKeyDictionary()
        """Monotonic time at which a replica's engine died. Serve replaces the process, and with it the connection."""
        self._prompts: WeakKeyDictionary[Connection, int] = WeakKeyDictionary()
        """Number of our prompts in each replica."""
        self._refused: WeakKeyDictionary[Connection, tuple[float, float]] = WeakKeyDictionary()
        """Monotonic time at which a replica had no room, because of other gateways' prompts, and the number of prompts
        of which it had more."""
        self._unanswered: Counter[str] = Counter()

    @contextlib.contextmanager
    def counted(self, model: str) -> Iterator[None]:
        """Count a request in this model's status while the block runs."""
        self._unanswered[model] += 1
        try:
            yield
        finally:
            self._unanswered[model] -= 1

    @contextlib.asynccontextmanager
    async def replica(self, model: str, key: RoutingKey) -> AsyncIterator[Connection]:
        """Pick a replica for the request that runs in the block, and learn from how it ends.

        Raises Overloaded where there is no room, ModelError where there is no replica or it was stopped on purpose, and
        EngineDied where it died. What else the block raises is passed on: after Refused, picking again gives another
        replica, or Overloaded.
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
            if connection.draining:  # a planned stop, or a lost lease: no request has killed it
                stopped = f"The process of {model} was stopped while it was answering; ask again."
                raise ModelError(stopped, code="model_starting") from error
            ended = f"The process of {model} ended while it was answering; it is started again."
            raise EngineDied(ended, connection.server_id) from error
        except Refused:
            room = key.room(self.entry.max_ongoing_requests)
            self._refused[connection] = time.monotonic(), room.most - room.prompts
            raise
        except ModelError as error:
            if error.code in FAULTS:
                breaker.failed()
            # A request that began after the engine died has not killed it.
            if error.code == ENGINE_DEAD and began <= self._died.setdefault(connection, time.monotonic()):
                raise EngineDied(error.message, connection.server_id) from error
            raise
        finally:
            self._prompts[connection] -= key.prompts

    async def loaded(self, model: str) -> list[Connection]:
        """Return the replicas that have loaded a model."""
        available = [replica for replica in await self._replicas.available() if replica not in self._died]
        return [each for each in available if model in each.statuses and each.statuses[model].state == "ready"]

    async def wait_for_replica(self, seconds: float) -> None:
        """Return once there is a replica, or after `seconds`: the model may be asleep, or not started yet."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not await self._replicas.available():
                    await asyncio.sleep(0.05)

    def close(self) -> None:
        """Stop searching for replicas: no new request will come. Running requests go on."""
        self._replicas.close()

    def is_missing(self) -> bool:
        """Return whether it has no replica, and none of a model that sleeps."""
        return not self._replicas.responsive() and (self._replicas.waking or not self.entry.sleeps)

    def is_joining(self, model: str) -> bool:
        """Return whether it was added while others served, and no replica has loaded it yet."""
        if model in self.joining and any(
            model in replica.statuses and replica.statuses[model].state in ("ready", "asleep")
            for replica in self._replicas.responsive()
        ):
            self.joining.remove(model)
        return model in self.joining

    def full(self) -> bool:
        """Return whether there are replicas and each has as many prompts as it may, so that `replica` would refuse."""
        replicas = self._replicas.responsive()
        room = Room(1, self.entry.max_ongoing_requests)
        return bool(replicas) and not any(self._fits(room, replica) for replica in replicas)

    async def status(self, model: str) -> Status:
        """Return the best status of this model that a replica reported lately, with our own count of its requests."""
        available = await self._replicas.available()
        reports: list[tuple[float, Status]] = [
            (replica.last_heard, replica.statuses[model]) for replica in available if model in replica.statuses
        ]
        if not reports:
            since_s = time.monotonic() - self._replicas.none_since
            if available:
                return Status(
                    model, "starting", "waiting for a process that knows it", since_s, self._unanswered[model]
                )
            if self.entry.sleeps and not self._replicas.waking:
                return Status(model, "asleep", "it starts when it is asked", since_s, self._unanswered[model])
            state: State = "starting"
            step = "starting again: its process ended" if self._replicas.ever_connected else "starting its process"
            if self.hindrance is not None:
                state, step = "failed" if self.hindrance.failed else state, f"{step}: {self.hindrance.why}"
            return Status(model, state, step, since_s, self._unanswered[model])
        order = ("ready", "asleep", "starting", "failed")
        at, status = min(reports, key=lambda report: order.index(report[1].state))
        return replace(status, since_s=status.since_s + time.monotonic() - at, unanswered=self._unanswered[model])

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
        room = key.room(self.entry.max_ongoing_requests)
        free = [replica for replica in ready or healthy if self._fits(room, replica)]
        if not free:
            if room.prompts > room.most:
                raise Overloaded(f"{model} takes {key.prompts} prompts at once only while it answers nothing else.")
            raise Overloaded.of_model(model)
        image = key.image if self.entry.keeps_pictures else None
        return pick_replica(free, image, lambda replica: self._load(replica) + replica.others)

    def _rests(self, replica: Connection) -> bool:
        return replica in self._breakers and self._breakers[replica].open

    def _load(self, replica: Connection) -> int:
        return self._prompts.get(replica, 0)

    def _fits(self, room: Room, replica: Connection) -> bool:
        """Return whether the replica may have the room; with other gateways' prompts, it decides itself."""
        at, more_than = self._refused.get(replica, (0.0, 0.0))
        # a batch request, or one of many prompts, is refused while others have room
        refused = time.monotonic() - at < REFUSED_S and more_than + room.prompts >= room.most
        return room.fits(self._load(replica)) and not refused


class Breaker:
    """A circuit breaker, which keeps requests away from a replica that fails all of them.

    It opens after FAILURES in a row, for REST_S seconds; then one request is let through as a trial.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._until = 0.0

    @property
    def open(self) -> bool:
        """True while the replica should get no requests."""
        return self._failures >= FAILURES and self._clock() < self._until

    def started(self) -> None:
        """Record that a request was sent. After a rest it is a trial, and no other request is sent meanwhile."""
        self._until = self._clock() + REST_S

    def failed(self) -> None:
        """Record a failure that was the replica's own fault."""
        self._failures += 1
        self._until = self._clock() + REST_S

    def succeeded(self) -> None:
        """Record a request that was answered."""
        self._failures = 0


class HasServerId(Protocol):
    """A replica. server_id: the same number for every gateway, below 2^64."""

    @property
    def server_id(self) -> int: ...


ReplicaT = TypeVar("ReplicaT", bound=HasServerId)


def pick_replica(replicas: Sequence[ReplicaT], image: str | None, load: Callable[[ReplicaT], int]) -> ReplicaT:
    """Return the replica that every gateway prefers for this image, unless it is crowded; without one the least loaded.

    Rendezvous hashing (highest random weight): a replica that comes or goes moves only its own share of the images.
    replicas: at least one. image: the hex digest of its file. load: the number of requests in a replica.
    """
    if len(replicas) == 1:
        return replicas[0]
    if image is None:
        return min(replicas, key=lambda replica: (load(replica), random.random()))
    digest = int(image[:16], 16)
    room = CROWDED * (1 + sum(map(load, replicas))) / len(replicas)
    free = [replica for replica in replicas if load(replica) < room]  # never empty: the least loaded is below average
    return max(free, key=lambda replica: ((digest ^ replica.server_id) * _ODD & _WORD) >> 16)
