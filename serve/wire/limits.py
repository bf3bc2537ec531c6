"""How large a request may be, how long it may take to arrive, and its reply to be taken."""

from dataclasses import dataclass

MAX_BODY = 28 * 1024 * 1024
"""A picture of 20 MB in base64 is 26.7, and beside it stand a chat's texts."""


@dataclass(frozen=True)
class Limits:
    """body, head: bytes; the head is the request line and its headers. body_s, head_s: seconds for all of it.
    write_s: seconds in which a client takes what was written for it."""

    body: int = MAX_BODY
    head: int = 64 * 1024
    body_s: float = 30.0
    head_s: float = 10.0
    write_s: float = 30.0
