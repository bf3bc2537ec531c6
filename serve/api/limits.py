"""Limits on a request's size, on the time it takes to arrive, and on the time its reply takes to be read."""

from dataclasses import dataclass

MAX_BODY_MB = 28
"""An image of 20 MB is 26.7 in base64, and a chat's texts come with it."""


@dataclass(frozen=True)
class Limits:
    """Limits on one request, by the names that they have in a config's `gateway`.

    max_body_mb: the largest body, in MiB. max_head: the request line and headers, in bytes. body_timeout_s,
    head_timeout_s: seconds in which all of either must arrive. write_timeout_s: seconds in which a client must take
    what was written for it.
    """

    max_body_mb: float = MAX_BODY_MB
    max_head: int = 64 * 1024
    body_timeout_s: float = 30.0
    head_timeout_s: float = 10.0
    write_timeout_s: float = 30.0

    @property
    def max_body(self) -> int:
        """The largest body in bytes."""
        return int(self.max_body_mb * 2**20)
