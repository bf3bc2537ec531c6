"""Skills that are made of another one: points from boxes, counts from boxes, points or answers in words."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

from serve.engines.base import Generation, Prompt
from serve.errors import ParseError
from serve.models.base import Skill
from serve.tasks.boxes import DetectResult
from serve.tasks.count import MOST, CountRequest, CountResult
from serve.tasks.plurals import plural_phrase
from serve.tasks.points import PointResult, middles

CUT = "The reply was cut by max_tokens before all were counted."
HOW_MANY = "How many {} are there?"


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
        return ask(request, HOW_MANY.format(plural_phrase(request.thing)))

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
