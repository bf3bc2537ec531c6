"""Requests that were being answered when an engine died: the next time each runs without the others.

One of them may have killed it, and its client will ask again. Whichever is alone when the engine dies once more was the
one (or another that was asked at the same moment, and is then tried alone in its turn).
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Hashable

from serve.errors import BadRequest

KEPT_S = 600.0
MOST = 1000
DEATHS = 2


class Quarantine:
    """One model's suspects. They are forgotten after KEPT_S, the oldest first where there are more than MOST."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._deaths: dict[Hashable, set[Hashable]] = {}
        self._since: dict[Hashable, float] = {}
        self._one_by_one = asyncio.Lock()

    def __bool__(self) -> bool:
        return bool(self._deaths)

    def blame(self, request: Hashable, death: Hashable) -> None:
        """An engine died while it was answering this one; the same may have been asked several times at once."""
        self._deaths[request] = self._deaths.pop(request, set()) | {death}
        self._since.pop(request, None)
        self._since[request] = self._clock()
        while len(self._deaths) > MOST:
            self._forget(next(iter(self._since)))

    @contextlib.asynccontextmanager
    async def watched(self, model: str, request: Hashable) -> AsyncIterator[None]:
        """Around a request's answer: a suspect waits for the others, and is cleared when it was answered.

        Raises BadRequest for one that was there at DEATHS deaths.
        """
        if self._clock() - self._since.get(request, self._clock()) > KEPT_S:
            self._forget(request)
        if request not in self._deaths:
            yield
            return
        if len(self._deaths[request]) >= DEATHS:
            raise BadRequest(
                f"{model}'s engine died {DEATHS} times while it was answering this request: it is not tried again for "
                f"{KEPT_S / 60:g} minutes.",
                code="quarantined",
            )
        async with self._one_by_one:
            yield
        self._forget(request)

    def _forget(self, request: Hashable) -> None:
        self._deaths.pop(request, None)
        self._since.pop(request, None)
