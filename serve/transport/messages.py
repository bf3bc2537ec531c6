"""Messages between the two ends. A frame holds one of them, or a list of several."""

from typing import Any, NamedTuple

from serve.errors import Overloaded, ServeError
from serve.media.shared_pixels import Handle

TOKEN_BYTES = 32
"""Length of a connection's first bytes, a secret that the caller learned through Ray."""
TOKEN_S = 5.0
"""Seconds in which a caller must send them."""


class Room(NamedTuple):
    """The part of a server that a call takes. prompts: what it adds to the server's; most: what it may add them up to.

    A server that answers nothing takes any number.
    """

    prompts: int
    most: float

    def fits(self, load: int) -> bool:
        """Return whether a server with `load` prompts takes the call."""
        return load == 0 or load + self.prompts <= self.most


class Refused(Overloaded):
    """A server that has no room for a call. Another one may have."""


class Call(NamedTuple):
    """Caller to server: begin a stream.

    room: what it takes of the server, where that is limited. pace_s: items within this time may be joined. request_id,
    salt: of the client's request. trace: the parent span as a traceparent; "" for none.
    """

    number: int
    method: str
    arguments: tuple[Any, ...]
    pace_s: float = 0.0
    request_id: str = ""
    trace: str = ""
    salt: str = ""
    room: Room | None = None


class Cancel(NamedTuple):
    """Caller to server: end this stream. The rest of its Call is not sent either."""

    number: int


class KeepAlive(NamedTuple):
    """Caller to server, every KEEP_ALIVE_S: it is alive. Streams of a caller that is silent for LEASE_S are cancelled.

    A process that dies closes its connections, but a suspended process or a broken network does not.
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
    """Server to caller, every second: it is alive. statuses: of its models. draining: it takes no new calls. prompts:
    those that it answers, of all its callers."""

    statuses: Any
    draining: bool = False
    prompts: int = 0


class Goodbye(NamedTuple):
    """Server to caller, last: the connection ends on purpose, and no process has died."""
