"""How large a request may be, and how long it may take to arrive."""

from dataclasses import dataclass

MAX_BODY = 25 * 1024 * 1024


@dataclass(frozen=True)
class Limits:
    """body, head: bytes; the head is the request line and its headers. body_s, head_s: seconds for all of it."""

    body: int = MAX_BODY
    head: int = 64 * 1024
    body_s: float = 30.0
    head_s: float = 10.0
