"""Isolates requests that were running when an engine died: when they come again, they run one at a time.

One of them may have killed the engine, and its client will retry. A suspect that runs alone when the engine dies again
is refused from then on.
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
    """The suspect requests of one engine. They are forgotten after KEPT_S seconds, or beyond MAX_SUSPECTS of them."""

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
