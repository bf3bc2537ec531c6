"""Counting: a phrase in, a number out."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field

from serve.engines.base import Generation
from serve.errors import ParseError
from serve.tasks.answers import normalise
from serve.tasks.base import CUT, LABELS, Instruction, Reply, Result, Task
from serve.tasks.detect import DetectRequest, Phrase
from serve.tasks.merging.median import weighted_median
from serve.tasks.merging.vote import majority
from serve.tasks.points import LabelledPoint

MOST = 1_000_000
MAX_TEXT = 4096  # characters of a reply that are read
_DIGITS = re.compile(r"(?<![\w.,-])(?:\d{1,3}(?:,\d{3})+|\d+)(?![\w%]|[.,]\d)")
CountedBy = Literal["words", "points", "boxes"]


class CountRequest(DetectRequest):
    labels: Annotated[list[Phrase], Field(min_length=1, max_length=1, description="What to count: a single phrase.")]


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

        Raises ParseError for a reply without a number, or with several different ones.
        """
        text = generation.text[:MAX_TEXT]
        digits = any(map(str.isdecimal, text))
        numbers = {number.replace(",", "") for number in _DIGITS.findall(text if digits else normalise(text))}
        if not numbers and generation.cut:
            raise ParseError(CUT)
        if len(numbers) != 1 or len(number := numbers.pop()) > len(str(MOST)) or int(number) > MOST:
            raise ParseError("The reply does not say one number.")
        return cls(count=int(number))


def _prompt(request: CountRequest) -> str:
    (label,) = request.phrases
    return f'How many of "{label}" are there in the image? Count all of them. Write one whole number and nothing else.'


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
    text_field=LABELS,
    example={"labels": ["circle"]},
    instruction=Instruction(_prompt, CountResult.read, max_tokens=64),
    by_confidence=True,
    as_text=_as_text,
)
