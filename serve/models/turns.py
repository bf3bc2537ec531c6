"""What the families' conversations have in common: their order, and the marks where picture and film stand."""

from collections.abc import Sequence
from itertools import groupby

from serve.errors import BadRequest
from serve.models.base import Turn
from serve.models.words import plain


def ordered(turns: Sequence[Turn]) -> tuple[str | None, Sequence[Turn]]:
    """Return the system text, if any, and the turns after it, in plain words: user's and assistant's by turns.

    Messages of one side that follow each other are one turn, and a reply without words is none: no family was trained
    on either. Raises BadRequest naming the message at fault.
    """
    begun = False
    for at, turn in enumerate(turns):
        begun = begun or turn.role != "system"
        if turn.role == "system" and begun:
            raise BadRequest("A system message must come first.", param=f"messages[{at}]")
    if not turns or turns[-1].role != "user":
        raise BadRequest("The last message must be the user's.", param="messages")
    spoken = (turn for turn in turns if turn.text or turn.role != "assistant")
    joined = [_joined(list(same)) for _, same in groupby(spoken, key=lambda turn: turn.role)]
    return (joined[0].text, joined[1:]) if joined[0].role == "system" else (None, joined)


def _joined(turns: Sequence[Turn]) -> Turn:
    text = turns[0].text if len(turns) == 1 else "\n".join(turn.text for turn in turns if turn.text)
    marks = any(turn.pictured for turn in turns), any(turn.filmed for turn in turns)
    return Turn(turns[0].role, plain(text), *marks)


def mark(turn: Turn) -> str:
    """What stands for the turn's picture or film; empty where it has none."""
    return "<image>" if turn.pictured else "<video>" if turn.filmed else ""


def marked(turn: Turn) -> str:
    """The turn's words, with the mark on a line of its own before them."""
    return f"{mark(turn)}\n{turn.text}" if mark(turn) else turn.text
