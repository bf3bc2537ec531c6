"""Implements Route for a model in other processes: a pool of replicas, and a quarantine for requests that kill them."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Hashable
from typing import Any

from deployments.routing.endpoint import Endpoint
from deployments.routing.pool import EngineDied, Pool, RoutingKey
from serve.engines.base import Piece, Prompt
from serve.errors import BadRequest, ModelError, Overloaded
from serve.media.video import Video
from serve.models.base import Model
from serve.router.route import Status
from serve.tasks import TASKS
from serve.tasks.reply import Delta, Reply, Waiting
from serve.tasks.request import Request
from serve.transport.messages import Refused

PACE_S = 0.045
"""Seconds between two messages with deltas of one stream: 22 updates a second reach the client."""
SLOW_PACE_S = 0.5
"""The same for a reply that is not streamed: its deltas are used only where the reply fails."""
KEPT_S = 600.0
MAX_SUSPECTS = 1000
DEATHS = 2


class Quarantine:
    """Isolates requests that were running when an engine died: when they come again, they run one at a time.

    One of them may have killed the engine, and its client will retry. A suspect that runs alone when the engine dies
    again is refused from then on. Suspects are forgotten after KEPT_S seconds, or beyond MAX_SUSPECTS of them.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._deaths: dict[Hashable, set[int]] = {}
        self._since: dict[Hashable, float] = {}
        self._one_at_a_time = asyncio.Lock()

    @property
    def suspects(self) -> int:
        """Number of suspect requests."""
        return len(self._deaths)

    @contextlib.asynccontextmanager
    async def watch(self, model: str, request: Hashable) -> AsyncIterator[None]:
        """Run a request in this block. A suspect waits for other suspects, and is cleared when it succeeds.

        request: identifies the request; equal ones count as the same. It becomes a suspect when EngineDied is raised in
        the block. Raises BadRequest for a request that was running at DEATHS deaths.
        """
        self._expire(request)
        self._refuse_killer(model, request)
        suspect = request in self._deaths
        try:
            async with self._one_at_a_time if suspect else contextlib.nullcontext():
                self._refuse_killer(model, request)  # an equal one may have killed while it waited
                yield
        except EngineDied as death:
            self.blame(request, death.server_id)
            raise
        if suspect:
            self._forget(request)

    def blame(self, request: Hashable, server_id: int) -> None:
        """Make a request a suspect of this server's death. Several equal requests are blamed once for one death."""
        self._deaths[request] = self._deaths.pop(request, set()) | {server_id}
        self._since.pop(request, None)
        self._since[request] = self._clock()
        while len(self._deaths) > MAX_SUSPECTS:
            self._forget(next(iter(self._since)))

    def _refuse_killer(self, model: str, request: Hashable) -> None:
        """Raise BadRequest for a request that was running at DEATHS deaths."""
        if len(self._deaths.get(request, ())) >= DEATHS:
            raise BadRequest(
                f"{model}'s engine died {DEATHS} times while it was answering this request: it is not tried again for "
                f"{KEPT_S / 60:g} minutes.",
                code="quarantined",
            )

    def _expire(self, request: Hashable) -> None:
        if self._clock() - self._since.get(request, self._clock()) > KEPT_S:
            self._forget(request)

    def _forget(self, request: Hashable) -> None:
        self._deaths.pop(request, None)
        self._since.pop(request, None)


class ReplicaRoute:
    """A Route to one model. Closing a stream early stops the replica's work.

    pool, quarantine: of the engine, shared by its model and its LoRA adapters. An Endpoint is the pool of a model on
    another server.
    """

    def __init__(self, model: Model, pool: Pool | Endpoint, quarantine: Quarantine) -> None:
        self.model = model
        self._pool = pool
        self._quarantine = quarantine

    @property
    def full(self) -> bool:
        """Return whether every replica has as many prompts as it may."""
        return self._pool.full()

    @property
    def joining(self) -> bool:
        """Return whether it was added while others served, and no replica has loaded it yet."""
        return self._pool.is_joining(self.model.name)

    def answer(self, task: str, request: Request) -> AsyncGenerator[Waiting | Delta | Reply, None]:
        """Return the replica's stream of a task's events."""

        def identify() -> tuple[RoutingKey, Hashable]:
            prompts = self.model.skills[task].prompts(request)
            key = RoutingKey(request.image.digest, request.priority == "batch", prompts)
            return key, (key, _digest(request.video), task, *TASKS[task].texts(request))

        pace_s = PACE_S if request.stream else SLOW_PACE_S
        return self.stream(identify, "answer", (task, request, self.model.name), pace_s)

    def speak(self, prompt: Prompt) -> AsyncGenerator[Piece, None]:
        """Return the replica's stream of a generation's pieces."""

        def identify() -> tuple[RoutingKey, Hashable]:
            key = RoutingKey(None if prompt.image is None else prompt.image.digest, prompt.batch)
            return key, (key, _digest(prompt.video), prompt.text)

        return self.stream(identify, "speak", (prompt, self.model.name), PACE_S)

    async def status(self) -> Status:
        """Return what a replica reported last."""
        return await self._pool.status(self.model.name)

    async def stream(
        self,
        identify: Callable[[], tuple[RoutingKey, Hashable]],
        method: str,
        arguments: tuple[Any, ...],
        pace_s: float,
    ) -> AsyncGenerator[Any, None]:
        """Yield what the replica's method yields.

        identify: returns the routing key and the request's identity for the quarantine. It runs code of the model's
        family, so it is called with the first item: its error then fails this model only. A Reply is the last item, and
        counts as the answer although its reader may close this stream with it. Raises what the method raised
        (ServeError), what `Pool.replica` raises, and BadRequest for a request that has killed the engine before.
        """
        name, empty = self.model.name, True
        reply: Reply | None = None
        refused_by: set[object] = set()
        key, request = identify()
        room = key.room(self._pool.entry.max_ongoing_requests)
        with self._pool.counted(name):
            while empty:
                try:
                    async with (
                        self._quarantine.watch(name, request),
                        self._pool.replica(name, key) as replica,
                        contextlib.aclosing(replica.stream(method, *arguments, pace_s=pace_s, room=room)) as items,
                    ):
                        async for item in items:
                            empty = False
                            if isinstance(item, Reply):
                                reply = item
                                break
                            yield item
                        if empty:
                            raise ModelError(f"{name} ended without a word.", code="engine_error")
                except Refused:  # then it has another replica's turn, or is Overloaded
                    if replica in refused_by:  # all may be full, and too slow to be full at once
                        raise Overloaded.of_model(name) from None
                    refused_by.add(replica)
            if reply is not None:  # yielded here, once the replica and the quarantine have counted it
                yield reply


def _digest(video: Video | None) -> str | None:
    return None if video is None else video.digest
