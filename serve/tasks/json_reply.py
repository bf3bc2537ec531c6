"""The JSON object in a model's reply, for tasks whose instruction asks for one."""

from typing import Any

from pydantic_core import from_json

from serve.engines.base import Generation
from serve.errors import ParseError

MAX_REPLY = 65_536
"""Characters of a reply that are read."""
CUT_OBJECT = "The reply was cut by max_tokens before the end of its object."


def read_object(generation: Generation, most: int = MAX_REPLY) -> dict[str, Any]:
    """Return the object of a reply, without what is written around it. Raises ParseError where there is none.

    most: characters of the reply that are read.
    """
    text = generation.text[:most]
    start, end = text.find("{"), text.rfind("}")
    if not 0 <= start < end:
        raise ParseError(CUT_OBJECT if generation.cut else "The reply has no JSON object.")
    try:
        value: dict[str, Any] = from_json(text[start : end + 1], allow_inf_nan=False)
    except ValueError as error:
        raise ParseError(CUT_OBJECT if generation.cut else f"The reply is not JSON: {error}.") from None
    return value
