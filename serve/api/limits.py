"""Limits on a request's size, on its time to arrive, and on the time a client takes to read the response."""

from dataclasses import dataclass

from serve.media.outline import MAX_MEGAPIXELS

MAX_BODY_MB = 28
"""Enough for an image of 20 MB, which is 26.7 MB in base64, and the text of a chat."""


@dataclass(frozen=True)
class KeyLimits:
    """Limits on each API key, in each gateway, named as in a config's `gateway`; None for no limit.

    They count requests that ask models (POST). requests_per_minute: also how many may start in a row after a quiet
    minute. requests_at_once: running requests.
    """

    requests_per_minute: int | None = None
    requests_at_once: int | None = None


UNLIMITED = KeyLimits()


@dataclass(frozen=True)
class Limits:
    """Limits on one request, named as in a config's `gateway`.

    max_body_mb: of the body, in MiB. max_image_megapixels: of an image, in millions of pixels. max_head: of the request
    line and headers, in bytes. body_timeout_s, head_timeout_s: seconds for the body or the head to arrive.
    write_timeout_s: seconds for a client to read what was written.
    """

    max_body_mb: float = MAX_BODY_MB
    max_image_megapixels: float = MAX_MEGAPIXELS
    max_head: int = 64 * 1024
    body_timeout_s: float = 30.0
    head_timeout_s: float = 10.0
    write_timeout_s: float = 30.0

    @property
    def max_body(self) -> int:
        """Largest body, in bytes."""
        return int(self.max_body_mb * 2**20)
