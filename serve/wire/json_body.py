"""A JSON body before it is parsed: whether it can be held at all."""

from serve.errors import BadRequest

MAX_VALUES = 250_000
SMALL = 100_000


def checked(body: bytearray) -> bytearray:
    """The body as it is. Raises BadRequest where it holds more values than any honest request, text included.

    28 MB of `[{},{},...` take gigabytes once they are Python's, and pydantic writes a complaint for each. Every value
    but the first of its list or object follows a comma, and how deep they may nest is the parser's own limit.
    """
    if len(body) > MAX_VALUES and body.count(b",") > MAX_VALUES:
        raise BadRequest("The body holds too many values.", code="invalid_value")
    return body


def is_quick(body: bytearray) -> bool:
    """Return whether it is read where it is, as the way to a thread and back takes longer."""
    return len(body) < SMALL
