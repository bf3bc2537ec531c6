"""Visual question answering: a question about the image, answered in a word or two."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from serve.tasks.answers import normalise
from serve.tasks.base import QUESTION, Instruction, Task
from serve.tasks.merging.vote import majority
from serve.tasks.reply import Reply, TextResult, text_of
from serve.tasks.request import Request

_UNSEEN = "\u00ad\u180e\u200b\u200c\u200d\u200e\u200f\u2060\u2800\u3164\ufeff"
"""Letters that show nothing and are no white space to Python: soft hyphen, zero-width blanks and joiners, marks of
direction, the empty braille cell, a filler, the byte order mark."""
_BLANKS = "".join(filter(str.isspace, map(chr, range(0x3001)))) + _UNSEEN  # all white space of Unicode lies below


def stripped(text: str) -> str:
    """Return the text without the blanks around it, in whatever letters they are written."""
    return text.strip(_BLANKS)


def _refuse_blank(question: str) -> str:
    if not (text := stripped(question)):
        raise ValueError("a question must have words")
    return text


Question = Annotated[str, Field(min_length=1, max_length=4000), AfterValidator(_refuse_blank)]
Language = Annotated[str, Field(pattern=r"^[a-z]{2,3}(-[A-Za-z]{2,4})?$", description="ISO 639 code, such as en.")]

SHORT = "\nAnswer the question using a single word or phrase."


def language_clause(code: str) -> str:
    """Return the sentence of an instruction that names the language; empty for English."""
    return "" if code == "en" else f" Write it in the language of the ISO 639 code {code}."


class VqaRequest(Request):
    question: Question
    lang: Language = "en"


class VqaResult(TextResult):
    answer: str


def _prompt(request: VqaRequest) -> str:
    return request.question + SHORT + language_clause(request.lang)


_BETWEEN = re.compile(r"(?<!\d),|,(?!\d)|;|\band\b|&", re.IGNORECASE)
"""What stands between things that are listed; a comma between digits is part of a number."""


def _key(reply: Reply) -> str:
    """Return an answer as it is compared; things that it lists are in order, so that `dog and cat` is `cat, dog`."""
    answer = text_of(reply)
    things = [thing for part in _BETWEEN.split(answer) if (thing := normalise(part))]
    return ", ".join(sorted(things)) or normalise(answer)


VQA = Task(
    name="vqa",
    title="Question answering",
    known_as=("visual-question-answering",),
    request=VqaRequest,
    result=VqaResult,
    methods={"vote": majority(_key), "weighted_vote": majority(_key, by_confidence=True)},
    text_field=QUESTION,
    example={"question": "how many shapes are there?"},
    instruction=Instruction(_prompt, VqaResult.read, max_tokens=64),
    by_confidence=True,
)
