"""Checks a JSON body before it is parsed."""

from serve.errors import BadRequest

MAX_VALUES = 150_000
"""Largest number of commas and opening brackets; an ordinary request has a few thousand."""
MAX_ESCAPES = 2_000_000
"""Largest number of backslashes. An image of 20 MB has 0.8 million, where line breaks and every slash are escaped."""
SMALL = 100_000
"""Bytes up to which a body is parsed on the event loop."""


def check_values(body: bytes) -> bytes:
    """Return the body unchanged. Raises BadRequest where it has more than MAX_VALUES values or MAX_ESCAPES backslashes.

    28 MB of `[{},{},...` become gigabytes of Python objects, and pydantic writes a complaint about each, while it holds
    the GIL. Every value follows a comma or a bracket; base64 has neither. A string with 14 million escapes is parsed in
    200 ms, in which the event loop waits for the GIL as well.
    """
    if len(body) > MAX_VALUES and sum(map(body.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise BadRequest("The body holds too many values.", code="invalid_value")
    if len(body) > MAX_ESCAPES and body.count(b"\\") > MAX_ESCAPES:
        raise BadRequest("The body holds too many escaped characters.", code="invalid_value")
    return body


def is_quick(size: int) -> bool:
    """Return whether a body of `size` bytes is parsed faster on the event loop than in a thread."""
    return size < SMALL
