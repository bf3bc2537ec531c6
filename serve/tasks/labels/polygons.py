"""Outlines of masks as polygons, which run along the edges of pixels."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from serve.media.masks import Mask

Point = tuple[int, int]
RIGHT_TURN = {(1, 0): (0, 1), (0, 1): (-1, 0), (-1, 0): (0, -1), (0, -1): (1, 0)}
"""The direction after a turn to the right, in pixels (x, y) with y down."""


def rings(mask: Mask) -> list[list[Point]]:
    """Return the outlines of a mask [height, width]: its parts clockwise, its holes the other way round.

    The corners are (x, y) of pixels' corners. Pixels that touch in a corner alone are different parts.
    """
    inside = np.pad(mask, 1)
    ends: dict[Point, list[Point]] = defaultdict(list)
    core = inside[1:-1, 1:-1]
    for around, begin, end in (
        (inside[:-2, 1:-1], (0, 0), (1, 0)),  # the pixel above is outside: an edge to the right
        (inside[1:-1, 2:], (1, 0), (1, 1)),
        (inside[2:, 1:-1], (1, 1), (0, 1)),
        (inside[1:-1, :-2], (0, 1), (0, 0)),
    ):
        for y, x in np.argwhere(core & ~around).tolist():
            ends[(x + begin[0], y + begin[1])].append((x + end[0], y + end[1]))
    outlines: list[list[Point]] = []
    while ends:
        start = min(ends, key=lambda point: (point[1], point[0])) if not outlines else next(iter(ends))
        outlines.append(_corners(_walk(ends, start)))
    return outlines


def signed_area(ring: Sequence[Point]) -> float:
    """Return the area inside a ring, negative where it runs round a hole."""
    following = [*ring[1:], ring[0]]
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(ring, following, strict=True)) / 2


def join_rings(outlines: Sequence[Sequence[Point]]) -> list[Point]:
    """Return one polygon for several rings: it goes to each and comes back along the same line, which has no area."""
    first = outlines[0]
    points = list(first)
    for ring in outlines[1:]:
        points += [first[0], *ring, ring[0]]
    return points


def _walk(ends: dict[Point, list[Point]], start: Point) -> list[Point]:
    """Return the points of the ring that begins at `start`, and take its edges out of `ends`."""
    points, at, direction = [start], start, (0, 0)
    while True:
        choices = ends[at]
        right = (
            (at[0] + RIGHT_TURN[direction][0], at[1] + RIGHT_TURN[direction][1])
            if len(choices) > 1 and any(direction)
            else None
        )
        following = choices.pop(choices.index(right) if right in choices else -1)
        if not choices:
            del ends[at]
        direction = (following[0] - at[0], following[1] - at[1])
        at = following
        if at == start:
            return points
        points.append(at)


def _corners(points: Sequence[Point]) -> list[Point]:
    """Return the points at which a ring turns."""
    before, after = [points[-1], *points[:-1]], [*points[1:], points[0]]
    return [
        point
        for last, point, following in zip(before, points, after, strict=True)
        if (point[0] - last[0], point[1] - last[1]) != (following[0] - point[0], following[1] - point[1])
    ]
