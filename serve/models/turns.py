"""Steps that the families' chat templates share: the order of turns, markers of image and video, escaped text."""

import re
from collections.abc import Sequence
from itertools import groupby

from serve.errors import BadRequest
from serve.models.base import Turn

_NAMES = r"/?s|unk|pad|bos|eos|mask|2mass|image|video|start_of_turn|end_of_turn|unused\d+|loc\d{4}|seg\d{3}|\|[^|<>]*\|"
_SPELLED = re.compile(rf"<(?=(?:{_NAMES})>)|\[(?=@BOS@\])")
"""Matches the first character of each control token of a served family's tokenizer: Llama, Mistral, Yi, Qwen 2, Gemma,
and PaliGemma's <locNNNN> and <segNNN>. Gemma's HTML tags (<table>) are ordinary vocabulary and do not match."""


def escape_control_tokens(text: str) -> str:
    """Return a user's text with a space inside each control token: `</s>` becomes `< /s>`, which is read as text.

    Tokenizers look for control tokens first, in the whole prompt, and cannot leave out the user's part of it.
    """
    return _SPELLED.sub(r"\g<0> ", text) if "<" in text or "[@" in text else text


def split_system(turns: Sequence[Turn]) -> tuple[str | None, Sequence[Turn]]:
    """Return the system text, if any, and the turns after it, alternating between user and assistant.

    Consecutive messages of one role are joined and empty replies dropped, since no family was trained on either.
    Control tokens in their text are escaped. Raises BadRequest naming the message at fault.
    """
    past_system = False
    for index, turn in enumerate(turns):
        past_system = past_system or turn.role != "system"
        if turn.role == "system" and past_system:
            raise BadRequest("A system message must come first.", param=f"messages[{index}]")
    if not turns or turns[-1].role != "user":
        raise BadRequest("The last message must be the user's.", param="messages")
    kept = (turn for turn in turns if turn.text or turn.role != "assistant")
    joined = [_join(list(same_role)) for _, same_role in groupby(kept, key=lambda turn: turn.role)]
    return (joined[0].text, joined[1:]) if joined[0].role == "system" else (None, joined)


def _join(turns: Sequence[Turn]) -> Turn:
    text = turns[0].text if len(turns) == 1 else "\n".join(turn.text for turn in turns if turn.text)
    has_image, has_video = any(turn.has_image for turn in turns), any(turn.has_video for turn in turns)
    return Turn(turns[0].role, escape_control_tokens(text), has_image, has_video)


def media_marker(turn: Turn) -> str:
    """Return `<image>` or `<video>`, the placeholder that the processor replaces by tokens, or an empty string."""
    return "<image>" if turn.has_image else "<video>" if turn.has_video else ""


def with_marker(turn: Turn) -> str:
    """Return the turn's text after a line with its marker, if it has one."""
    return f"{media_marker(turn)}\n{turn.text}" if media_marker(turn) else turn.text
