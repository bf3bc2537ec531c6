"""Counting: a question about how many in, a number out."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from serve.engines.base import Generation
from serve.errors import BadRequest, ParseError
from serve.tasks.answers import normalise
from serve.tasks.base import Instruction, Task, TextField
from serve.tasks.boxes import phrase
from serve.tasks.merging.median import weighted_median
from serve.tasks.merging.vote import majority
from serve.tasks.plurals import singular_phrase
from serve.tasks.points import LabelledPoint
from serve.tasks.reply import CUT, Reply, Result
from serve.tasks.request import Request
from serve.tasks.vqa import Question, stripped

MOST = 1_000_000
MAX_PHRASE = 200  # characters of the thing to count
MAX_TEXT = 4096  # characters of a reply that are read
_LARGE = "(?:hundred|thousand|million|billion|dozen)s?"
_DIGITS = re.compile(
    rf"(?<![\w.,\u2212-])(?:\d{{1,3}}(?:,\d{{3}})+|\d+)(?!\w|[.,-]\d|\s?%|[\s-]*(?:percent|per cent|{_LARGE})\b)",
    re.IGNORECASE,
)
_UNREAD_WORDS = re.compile(
    rf"\b(?:eleven|twelve|(?:thir|four|fif|six|seven|eigh|nine)teen|(?:twen|thir|for|fif|six|seven|eigh|nine)ty|{_LARGE}"
    r"|half|halves|percent|not|minus)\b|n['\u2019]t\b",
    re.IGNORECASE,
)
"""Words of which a number up to ten is only a part, as in `twenty-one` and `two hundred`, or that turn it round."""
_NO_ONE = re.compile(r"\b(?:no[ -]one|nobody)\b", re.IGNORECASE)
_NONE = re.compile(r"\bnone\b", re.IGNORECASE)
_NUMBER_OF = "(?:the )?(?:total |exact |overall )?(?:number|count) of"
_HOW_MANY = re.compile(
    r"(?:how many"
    r"|(?:please )?(?:(?:can|could|would|will) you )?(?:please )?"
    r"(?:count|tell(?: me)?|say|give(?: me)?|state|report|determine|find(?: out)?|estimate|write)"
    rf"(?: how many| {_NUMBER_OF})"
    r"|(?:please )?(?:(?:can|could|would|will) you )?(?:please )?count"
    rf"|(?:what is |what's )?{_NUMBER_OF})"
    r"(?: (?:all|every|each))?(?: of)?(?: the| these| those)? (.+)",
    re.IGNORECASE,
)
_THERE = re.compile(
    r"(?: (?:there )?(?:are|is)(?: there)?(?: visible| shown| present| seen)?"
    r"| (?:do|can) (?:you|we|i) (?:see|count|find)| can be seen)?(?: here| in total| altogether)?"
    r"(?: (?:are |is )?(?:there )?(?:in|on) (?:the|this) (?:image|picture|photo|photograph|scene|drawing))?$",
    re.IGNORECASE,
)
_UNREAD = re.compile(r"^(?:are|is|there)\b|\b(?:do|does|did|can|could|will|would|has|have)\b", re.IGNORECASE)
CountedBy = Literal["words", "points", "boxes"]


def counted_thing(question: str) -> str | None:
    """Return what a question asks to count, in the singular: `How many red buses are there?` -> `red bus`.

    Words that say which of them are counted stay: `How many cars are red?` -> `cars that are red`. What is no question
    is such a phrase itself and stays as it is. None: a question that cannot be read so.
    """
    text = " ".join(stripped(question).split())
    match = _HOW_MANY.match(text.rstrip("?.! "))
    if match is None:
        return None if text.endswith("?") else phrase(text)
    things = _THERE.sub("", match[1])
    if not phrase(things) or _UNREAD.search(things):
        return None
    which = re.sub(r" are ", " that are ", things, count=1)  # `people are wearing hats`
    return singular_phrase(phrase(things)) if which == things else phrase(which)


class CountRequest(Request):
    question: Annotated[
        Question,
        Field(description="What to count, one thing: `red circle`, or `How many red circles are there?`, in English."),
    ]

    @model_validator(mode="before")
    @classmethod
    def _refuse_labels(cls, given: Any) -> Any:
        """Name the field that replaced `labels`."""
        if isinstance(given, Mapping) and "labels" in given:
            raise BadRequest("What to count is written in question, not in labels.", param="labels")
        return given

    @field_validator("question")
    @classmethod
    def _require_thing(cls, question: str) -> str:
        thing = counted_thing(question)
        if thing is None or len(thing) > MAX_PHRASE:
            raise ValueError(
                "name one thing to count, in a few words: 'red circle', or 'How many red circles are there?'"
            )
        return question

    @property
    def thing(self) -> str:
        """Return what is to be counted, as a phrase in the singular."""
        thing = counted_thing(self.question)
        assert thing is not None
        return thing

    @property
    def labels(self) -> list[str]:
        """Return the labels that a request for detecting or pointing would have: models may count what they find."""
        return [self.thing]

    @property
    def phrases(self) -> list[str]:
        return self.labels


class CountResult(Result):
    """The number of objects. by: what was counted, the model's own words for it, or its points or boxes.

    points: where the objects are, for a count by points or boxes: the boxes' centres.
    """

    count: Annotated[int, Field(ge=0, le=MOST)]
    by: CountedBy = "words"
    points: list[LabelledPoint] = []

    @classmethod
    def read(cls, generation: Generation, request: Any = None) -> Self:
        """Return the number that a model wrote, in digits or up to ten as a word.

        Raises ParseError for a reply without a number, or with several different ones, and for words that are part of a
        larger number.
        """
        text = _NO_ONE.sub("none", generation.text[:MAX_TEXT])
        if any(map(str.isdecimal, text)):
            numbers = {number.replace(",", "") for number in _DIGITS.findall(text)}
            numbers |= {"0"} if _NONE.search(text) else set()  # none of the 3
        else:
            numbers = set() if _UNREAD_WORDS.search(text) else set(_DIGITS.findall(normalise(text)))
        if not numbers and generation.cut:
            raise ParseError(CUT)
        if len(numbers) != 1 or len(number := numbers.pop()) > len(str(MOST)) or int(number) > MOST:
            raise ParseError("The reply does not say one number.")
        return cls(count=int(number))


def _prompt(request: CountRequest) -> str:
    return (
        f'How many of "{request.thing}" are there in the image? Count all of them. Write one whole number and nothing '
        "else."
    )


def _key(reply: Reply) -> str:
    return str(_number(reply))


def _number(reply: Reply) -> int:
    assert isinstance(reply.result, CountResult)
    return reply.result.count


def _as_text(result: CountResult) -> str:
    return str(result.count)


COUNT = Task(
    name="count",
    title="Counting",
    known_as=("object-counting",),
    request=CountRequest,
    result=CountResult,
    methods={
        "median": weighted_median(_number),
        "weighted_median": weighted_median(_number, by_confidence=True),
        "vote": majority(_key),
        "weighted_vote": majority(_key, by_confidence=True),
    },
    text_field=TextField("question", "What to count", "What to count?"),
    example={"question": "How many circles are there?"},
    instruction=Instruction(_prompt, CountResult.read, max_tokens=64),
    by_confidence=True,
    as_text=_as_text,
)
