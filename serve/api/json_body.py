"""Checks a JSON body before it is parsed."""

from serve.errors import BadRequest

MAX_VALUES = 150_000
"""Largest number of commas and opening brackets; an ordinary request has a few thousand."""
SMALL = 100_000
"""Bytes up to which a body is parsed on the event loop."""


def check_values(body: bytes) -> bytes:
    """Return the body unchanged. Raises BadRequest where it has more than MAX_VALUES values.

    28 MB of `[{},{},...` become gigabytes of Python objects, and pydantic writes a complaint about each, while it holds
    the GIL. Every value follows a comma or a bracket; base64 has neither.
    """
    if len(body) > MAX_VALUES and sum(map(body.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise BadRequest("The body holds too many values.", code="invalid_value")
    return body


def is_quick(size: int) -> bool:
    """Return whether a body of `size` bytes is parsed faster on the event loop than in a thread."""
    return size < SMALL
