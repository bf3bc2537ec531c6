"""Messages between the two ends. A frame holds one of them, or a list of several."""

from typing import Any, NamedTuple

from serve.errors import ServeError
from serve.media.shared_pixels import Handle

TOKEN_BYTES = 32
"""Length of a connection's first bytes, which prove that the caller learned of this server through Ray."""
TOKEN_S = 5.0
"""Seconds in which a caller must send them."""


class Call(NamedTuple):
    """Caller to server: begin a stream.

    pace_s: items that come closer together than this may be joined on the way. request_id, salt: of the request that it
    is for. trace: the parent span, as a traceparent; "" for none.
    """

    number: int
    method: str
    arguments: tuple[Any, ...]
    pace_s: float = 0.0
    request_id: str = ""
    trace: str = ""
    salt: str = ""


class Cancel(NamedTuple):
    """Caller to server: end this stream. No more of its Call will be sent either."""

    number: int


class KeepAlive(NamedTuple):
    """Caller to server, every KEEP_ALIVE_S: it still listens. The streams of a caller that is silent for LEASE_S end.

    A process that dies closes its connections; one that is stopped, or behind a network that is cut, does not.
    """


KEEP_ALIVE_S, LEASE_S = 1.0, 10.0


class Probe(NamedTuple):
    """Caller to server, once: pixels that only a process of the same machine can read."""

    pixels: Handle


class ProbeReply(NamedTuple):
    """Server to caller: the bytes of the probe's pixels; none where it could not read them."""

    read: bytes


class Items(NamedTuple):
    """Server to caller: the next items of a stream."""

    number: int
    items: list[Any]


class End(NamedTuple):
    """Server to caller: a stream is over, with an error where it failed."""

    number: int
    error: ServeError | None = None


class Heartbeat(NamedTuple):
    """Server to caller, every second: it is alive. statuses: of what it serves. draining: it takes no new calls."""

    statuses: Any
    draining: bool = False


class Goodbye(NamedTuple):
    """Server to caller, last: the connection ends on purpose, and no process has died."""
