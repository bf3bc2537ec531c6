"""What the families' conversations have in common: their order, and the marks where picture and film stand."""

from collections.abc import Sequence
from dataclasses import replace

from serve.errors import BadRequest
from serve.models.base import Turn
from serve.models.words import plain


def ordered(turns: Sequence[Turn]) -> tuple[str | None, Sequence[Turn]]:
    """The system text, if any, and the turns after it, all in plain words. Raises BadRequest naming the message at
    fault."""
    for at, turn in enumerate(turns):
        if turn.role == "system" and at:
            raise BadRequest("A system message must come first.", param=f"messages[{at}]")
    if not turns or turns[-1].role != "user":
        raise BadRequest("The last message must be the user's.", param="messages")
    said = [turn if (text := plain(turn.text)) == turn.text else replace(turn, text=text) for turn in turns]
    return (said[0].text, said[1:]) if said[0].role == "system" else (None, said)


def mark(turn: Turn) -> str:
    """What stands for the turn's picture or film; empty where it has none."""
    return "<image>" if turn.pictured else "<video>" if turn.filmed else ""


def marked(turn: Turn) -> str:
    """The turn's words, with the mark on a line of its own before them."""
    return f"{mark(turn)}\n{turn.text}" if mark(turn) else turn.text
