"""What the two ends say to each other. A frame is a list of these: all that is said in one turn of the loop."""

from typing import Any, NamedTuple

from serve.errors import ServeError

TOKEN_BYTES = 32
"""A connection's first bytes: they prove that the caller was told of this server by Ray."""


class Call(NamedTuple):
    """Caller to server: begin a stream. pace_s: items that come closer together than this may be joined on the way.
    request_id: of whom it is for. trace: the span it is under, as a traceparent; "" for none."""

    number: int
    method: str
    arguments: tuple[Any, ...]
    pace_s: float = 0.0
    request_id: str = ""
    trace: str = ""


class Cancel(NamedTuple):
    """Caller to server: nobody listens to this stream any more."""

    number: int


class Renew(NamedTuple):
    """Caller to server, every RENEW_S: that it still listens. One that does not say so for LEASE_S is taken for dead.

    A process that dies closes its connections, but one that is stopped, or a network that is cut, does not.
    """


RENEW_S, LEASE_S = 1.0, 10.0


class Items(NamedTuple):
    """Server to caller: what came in a stream."""

    number: int
    items: list[Any]


class End(NamedTuple):
    """Server to caller: a stream is over, with an error where it failed."""

    number: int
    error: ServeError | None = None


class News(NamedTuple):
    """Server to caller, now and then: that it is alive, and how it stands. leaving: it takes no new calls."""

    standing: Any
    leaving: bool = False
