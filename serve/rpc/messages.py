"""What the two ends say to each other. A frame is one of these, or a list of several."""

from typing import Any, NamedTuple

from serve.errors import ServeError
from serve.media.shared_pixels import Handle

TOKEN_BYTES = 32
"""A connection's first bytes: they prove that the caller was told of this server by Ray."""
TOKEN_S = 5.0
"""How long a caller may take to say them."""


class Call(NamedTuple):
    """Caller to server: begin a stream. pace_s: items that come closer together than this may be joined on the way.
    request_id, salt: of whom it is for. trace: the span it is under, as a traceparent; "" for none."""

    number: int
    method: str
    arguments: tuple[Any, ...]
    pace_s: float = 0.0
    request_id: str = ""
    trace: str = ""
    salt: str = ""


class Cancel(NamedTuple):
    """Caller to server: nobody listens to this stream any more. Nothing more of its Call will come either."""

    number: int


class Renew(NamedTuple):
    """Caller to server, every RENEW_S: that it still listens. Of one that sends nothing for LEASE_S the streams end.

    A process that dies closes its connections, but one that is stopped, or a network that is cut, does not.
    """


RENEW_S, LEASE_S = 1.0, 10.0


class Probe(NamedTuple):
    """Caller to server, once: pixels that only a process of the same machine can read."""

    pixels: Handle


class Probed(NamedTuple):
    """Server to caller: what it read of them; nothing where it could not."""

    read: bytes


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


class Goodbye(NamedTuple):
    """Server to caller, last: the connection ends on purpose, and no process has died."""
