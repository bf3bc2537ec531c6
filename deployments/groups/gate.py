"""Lets requests to an engine while it is awake, a bounded number at a time; the others wait in front of it."""

import asyncio
from collections import deque
from collections.abc import Callable

from deployments.groups.policy import Kind
from serve.errors import ModelError

KINDS: tuple[Kind, Kind] = ("interactive", "batch")


class Ticket:
    """A request at the gate. since: when it came. admitted: whether it may go to the engine. news: set when that
    changes."""

    def __init__(self, kind: Kind, since: float) -> None:
        self.kind = kind
        self.since = since
        self.admitted = False
        self.news = asyncio.Event()


class Gate:
    """The gate of one engine, closed at first.

    at_once: requests in the engine at a time, so that it is empty soon after the gate was closed. on_change: called
    when a request came, went on or left. failure: the error for all requests, from `fail` to `open`. idle_since:
    when the last request left the engine.
    """

    def __init__(self, at_once: int, on_change: Callable[[], None]) -> None:
        self.clock = asyncio.get_running_loop().time
        self.failure: ModelError | None = None
        self.idle_since = self.clock()
        self._at_once = at_once
        self._on_change = on_change
        self._open = False
        self._waiting: dict[Kind, deque[Ticket]] = {kind: deque() for kind in KINDS}
        self._running: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        self._empty = asyncio.Event()
        self._empty.set()

    def enter(self, kind: Kind) -> Ticket:
        """Return the ticket of a request. It has to be given to `leave` at the end, admitted or not."""
        ticket = Ticket(kind, self.clock())
        self._waiting[kind].append(ticket)
        self._admit()
        self._on_change()
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Count a request as ended; one that was not admitted leaves nothing."""
        if ticket.admitted:
            self._running[ticket.kind] -= 1
            if not self.running():
                self.idle_since = self.clock()
                self._empty.set()
            self._admit()
        else:
            self._waiting[ticket.kind].remove(ticket)
        self._on_change()

    def open(self) -> None:
        """Admit requests: those that wait, interactive ones first, and those that come. Ends a failure."""
        self._open, self.failure = True, None
        self.idle_since = self.clock()
        self._admit()

    async def close(self) -> None:
        """Admit no more requests, and return once those in the engine have ended."""
        self._open = False
        await self._empty.wait()

    def fail(self, error: ModelError) -> None:
        """Fail all requests from now on, those that wait too."""
        self.failure = error
        self.tell()

    def tell(self) -> None:
        """Wake all waiting requests, to look what has changed."""
        for tickets in self._waiting.values():
            for ticket in tickets:
                ticket.news.set()

    def running(self) -> Kind | None:
        """Return the kind of request in the engine; interactive where there are both."""
        return next((kind for kind in KINDS if self._running[kind]), None)

    def waited_s(self, kind: Kind) -> float | None:
        """Return how long the oldest waiting request of this kind has waited; None where there is none."""
        tickets = self._waiting[kind]
        return self.clock() - tickets[0].since if tickets else None

    def _admit(self) -> None:
        for kind in KINDS:
            while self._open and self._waiting[kind] and sum(self._running.values()) < self._at_once:
                ticket = self._waiting[kind].popleft()
                ticket.admitted = True
                ticket.news.set()
                self._running[kind] += 1
                self._empty.clear()
