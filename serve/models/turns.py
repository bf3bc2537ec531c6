"""What the families' conversations have in common: their order, and the marks where picture and film stand."""

from collections.abc import Sequence

from serve.errors import BadRequest
from serve.models.base import Turn

MARKS = ("<image>", "<video>")


def ordered(turns: Sequence[Turn]) -> tuple[str | None, Sequence[Turn]]:
    """The system text, if any, and the turns after it. Raises BadRequest naming the message at fault.

    A family's marks must stand where its picture stands: a text that brings its own would add a second picture.
    """
    for at, turn in enumerate(turns):
        if turn.role == "system" and at:
            raise BadRequest("A system message must come first.", param=f"messages[{at}]")
        unmarked(turn.text, f"messages[{at}]")
    if not turns or turns[-1].role != "user":
        raise BadRequest("The last message must be the user's.", param="messages")
    return (turns[0].text, turns[1:]) if turns[0].role == "system" else (None, turns)


def unmarked(text: str, param: str) -> str:
    """The text as it is. Raises BadRequest where it holds a mark."""
    for mark in MARKS:
        if mark in text:
            raise BadRequest(f"The text must not contain {mark}.", param=param)
    return text


def mark(turn: Turn) -> str:
    """What stands for the turn's picture or film; empty where it has none."""
    return "<image>" if turn.pictured else "<video>" if turn.filmed else ""


def marked(turn: Turn) -> str:
    """The turn's words, with the mark on a line of its own before them."""
    return f"{mark(turn)}\n{turn.text}" if mark(turn) else turn.text
