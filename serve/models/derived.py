"""Skills that are made of another one: points from boxes, counts from boxes, points or answers in words."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

from serve.engines.base import Generation, Prompt
from serve.errors import ParseError
from serve.models.base import Skill
from serve.tasks.boxes import DetectResult
from serve.tasks.count import MOST, CountRequest, CountResult
from serve.tasks.points import PointResult, middles

CUT = "The reply was cut by max_tokens before all were counted."
HOW_MANY = "How many {} are there?"
_IRREGULAR = dict(
    pair.split(":")
    for pair in "person:people man:men woman:women child:children foot:feet tooth:teeth goose:geese mouse:mice "
    "sheep:sheep fish:fish deer:deer aircraft:aircraft knife:knives leaf:leaves shelf:shelves wolf:wolves".split()
)
_AFTER = frozenset("with in on at of to by from under over near behind between that which who wearing holding".split())
"""Words that end the name of a thing in a phrase: `person with a hat`."""


def points_of_boxes(detect: Skill) -> Skill:
    """Return the skill of pointing of a model that detects: a point is a box's centre."""

    def parse(generations: Sequence[Generation], request: Any) -> PointResult:
        result = detect.parse(generations, request)
        assert isinstance(result, DetectResult)
        return PointResult(points=middles(result.boxes), size=(request.image.height, request.image.width))

    return _derived(detect, parse, points_of_boxes)


def count_of_boxes(detect: Skill) -> Skill:
    """Return the skill of counting of a model that detects: it counts its boxes."""
    return _counted(detect, "boxes", count_of_boxes)


def count_of_points(point: Skill) -> Skill:
    """Return the skill of counting of a model that points: it counts its points."""
    return _counted(point, "points", count_of_points)


def count_in_words(ask: Callable[[CountRequest, str], list[Prompt]]) -> Skill:
    """Return the skill of counting of a model that answers questions. ask: a request and its question -> the prompt."""

    def ask_count(request: CountRequest) -> list[Prompt]:
        (label,) = request.phrases
        return ask(request, HOW_MANY.format(plural_phrase(label)))

    def parse(generations: Sequence[Generation], request: CountRequest) -> CountResult:
        return CountResult.read(generations[0])

    return Skill(ask_count, parse, basis="prompted")


def _counted(places: Skill, by: Literal["boxes", "points"], make: Callable[[Skill], Skill]) -> Skill:
    def parse(generations: Sequence[Generation], request: CountRequest) -> CountResult:
        if any(generation.cut for generation in generations):
            raise ParseError(CUT)  # those that it wrote would be too few
        result = places.parse(generations, request)
        points = middles(result.boxes) if isinstance(result, DetectResult) else getattr(result, "points", [])
        return CountResult(count=min(len(points), MOST), by=by, points=points)

    return _derived(places, parse, make)


def _derived(source: Skill, parse: Callable[[Sequence[Generation], Any], Any], make: Callable[[Skill], Skill]) -> Skill:
    """Return a skill that asks as `source` does. make: makes it again of each way that `source` may be asked in."""

    def of(form: Callable[[Any], Skill]) -> Callable[[Any], Skill]:
        return lambda contract: make(form(contract))

    by = None if source.by is None else of(source.by)
    return replace(source, parse=parse, forms=tuple(map(of, source.forms)), by=by, basis="derived")


def plural_phrase(phrase: str) -> str:
    """Return an English phrase in the plural, good for asking how many: `red bus` -> `red buses`.

    What seems to be a plural stays.
    """
    words = phrase.split()
    end = next((at for at, word in enumerate(words) if at and word.casefold() in _AFTER), len(words))
    words[end - 1] = _plural_word(words[end - 1])
    return " ".join(words)


def _plural_word(word: str) -> str:
    low = word.casefold()
    if low in _IRREGULAR:
        return word[:1] + _IRREGULAR[low][1:]
    if low in _IRREGULAR.values() or (low.endswith("s") and not low.endswith(("ss", "us"))):
        return word
    if low.endswith(("s", "x", "z", "ch", "sh")):
        return f"{word}es"
    return f"{word[:-1]}ies" if low.endswith("y") and low[-2:-1] not in "aeiou" else f"{word}s"
