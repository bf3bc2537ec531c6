"""Keeps requests apart that were running when an engine died: the next time each runs without the others.

One of them may have killed it, and its client will ask again. The one that runs alone when the engine dies once more is
the killer (or shares the blame with another that was asked at the same moment, and is then tried alone in its turn).
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Hashable

from deployments.routing.pool import EngineDied
from serve.errors import BadRequest

KEPT_S = 600.0
MAX_SUSPECTS = 1000
DEATHS = 2


class Quarantine:
    """The suspects of one engine. They are forgotten after KEPT_S, the oldest first beyond MAX_SUSPECTS."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._deaths: dict[Hashable, set[int]] = {}
        self._since: dict[Hashable, float] = {}
        self._one_at_a_time = asyncio.Lock()

    @property
    def suspects(self) -> int:
        """The number of requests under suspicion."""
        return len(self._deaths)

    @contextlib.asynccontextmanager
    async def watch(self, model: str, request: Hashable) -> AsyncIterator[None]:
        """Run a request in this block. A suspect waits for the other suspects, and is cleared once it was answered.

        request: tells requests apart; equal ones count as the same. A request in whose block EngineDied is raised
        becomes a suspect. Raises BadRequest for one that was running at DEATHS deaths.
        """
        self._expire(request)
        suspect = request in self._deaths
        if suspect and len(self._deaths[request]) >= DEATHS:
            raise BadRequest(
                f"{model}'s engine died {DEATHS} times while it was answering this request: it is not tried again for "
                f"{KEPT_S / 60:g} minutes.",
                code="quarantined",
            )
        try:
            async with self._one_at_a_time if suspect else contextlib.nullcontext():
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

    def _expire(self, request: Hashable) -> None:
        if self._clock() - self._since.get(request, self._clock()) > KEPT_S:
            self._forget(request)

    def _forget(self, request: Hashable) -> None:
        self._deaths.pop(request, None)
        self._since.pop(request, None)
