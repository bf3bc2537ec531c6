"""A JSON body before it is parsed: whether it can be held at all."""

from serve.errors import BadRequest

MAX_VALUES = 150_000
"""Commas and opening brackets together; an honest request has a few thousand."""
SMALL = 100_000


def checked(body: bytes) -> bytes:
    """The body as it is. Raises BadRequest where it holds more values than any honest request, text included.

    28 MB of `[{},{},...` take gigabytes once they are Python's, and pydantic writes a complaint for each: all while the
    interpreter is held. Every value follows a comma or a bracket; base64 has neither.
    """
    if len(body) > MAX_VALUES and sum(map(body.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise BadRequest("The body holds too many values.", code="invalid_value")
    return body


def is_quick(size: int) -> bool:
    """Return whether a body of `size` bytes is read where it is, as the way to a thread and back takes longer."""
    return size < SMALL
