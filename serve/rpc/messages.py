"""What the two ends say to each other. A frame is a list of these: all that is said in one turn of the loop."""

from dataclasses import dataclass
from typing import Any

from serve.errors import ServeError

TOKEN_BYTES = 32
"""A connection's first bytes: they prove that the caller was told of this server by Ray."""


@dataclass(frozen=True, slots=True)
class Call:
    """Caller to server: begin a stream. pace_s: items that come closer together than this may be joined on the way."""

    number: int
    method: str
    arguments: tuple[Any, ...]
    pace_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Cancel:
    """Caller to server: nobody listens to this stream any more."""

    number: int


@dataclass(frozen=True, slots=True)
class Items:
    """Server to caller: what came in a stream."""

    number: int
    items: list[Any]


@dataclass(frozen=True, slots=True)
class End:
    """Server to caller: a stream is over, with an error where it failed."""

    number: int
    error: ServeError | None = None


@dataclass(frozen=True, slots=True)
class News:
    """Server to caller, now and then: that it is alive, and how it stands. leaving: it takes no new calls."""

    standing: Any
    leaving: bool = False
