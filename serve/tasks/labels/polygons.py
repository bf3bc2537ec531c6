"""Outlines of masks as polygons, which run along the edges of pixels."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from serve.media.masks import Mask

Point = tuple[int, int]
Numbers = npt.NDArray[np.int64]
MAX_CORNERS = 200_000
"""Most corners of a mask's outlines; one with more, which is noise, is outlined at half its resolution."""


def rings(mask: Mask) -> list[list[Point]]:
    """Return the outlines of a mask [height, width]: its parts clockwise, its holes the other way round.

    The corners are (x, y) of pixels' corners. Pixels that touch in a corner alone are different parts. It costs less
    than a microsecond a corner, whatever the number of pixels along an edge.
    """
    height, width = mask.shape
    inside = np.pad(mask, 1)
    above, below, left, right = inside[:-1], inside[1:], inside[:, :-1], inside[:, 1:]
    # A point has a horizontal edge at its left where the pixels above and below that edge differ, and so on.
    across, upright = above != below, left != right
    touching = (across[:, :-1] & across[:, 1:]).astype(np.int8)  # edges on both sides: straight on, or two corners
    corners = (across[:, :-1] != across[:, 1:]) + 2 * (touching & upright[:-1] & upright[1:])
    if int(corners.sum()) > MAX_CORNERS:
        small = rings(mask[::2, ::2])
        return [[(min(2 * x, width), min(2 * y, height)) for x, y in ring] for ring in small]
    ys, xs = np.nonzero(corners)
    times = corners[ys, xs]
    rows_y, rows_x = np.repeat(ys, times), np.repeat(xs, times)
    order = np.lexsort((rows_y, rows_x))
    columns_y, columns_x = rows_y[order], rows_x[order]
    # Corners of a row are the two ends of an edge in turn, and so are those of a column.
    rightwards = inside[rows_y[::2] + 1, rows_x[::2] + 1]  # the pixel below is inside: an upper edge
    downwards = inside[columns_y[::2] + 1, columns_x[::2]]  # the pixel at the left is inside: a right edge
    number = rows_y * (width + 1) + rows_x
    from_row, to_row = _directed(number, rightwards)
    from_column, to_column = _directed(columns_y * (width + 1) + columns_x, downwards)
    # At a point with two corners the way turns right, so it stays with its pixel.
    after_row = _following(from_column, downwards, to_row, rightwards)
    after_column = _following(from_row, rightwards, to_column, ~downwards)
    return _cycles(from_row, from_column, after_row, after_column, width + 1)


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


def _directed(points: Numbers, forwards: Mask) -> tuple[Numbers, Numbers]:
    """Return where edges begin and where they end; points: both ends of each in turn."""
    first, second = points[::2], points[1::2]
    return np.where(forwards, first, second), np.where(forwards, second, first)


def _following(begin: Numbers, forwards: Mask, end: Numbers, wanted: Mask) -> Numbers:
    """Return for each edge that ends at `end` the one that begins there; of two, that with the `wanted` direction."""
    key = 2 * begin + forwards
    order = np.argsort(key)
    ordered = key[order]
    at = np.searchsorted(ordered, 2 * end)
    other = np.minimum(at + 1, len(ordered) - 1)
    two = (ordered[at] // 2 == ordered[other] // 2) & (at != other)
    chosen: Numbers = order[np.where(two & wanted, other, at)]
    return chosen


def _cycles(
    from_row: Numbers, from_column: Numbers, after_row: Numbers, after_column: Numbers, stride: int
) -> list[list[Point]]:
    rows, columns = _points(from_row, stride), _points(from_column, stride)
    next_column, next_row = after_row.tolist(), after_column.tolist()
    seen = bytearray(len(rows))
    outlines: list[list[Point]] = []
    for start in range(len(rows)):
        if seen[start]:
            continue
        ring: list[Point] = []
        at = start
        while not seen[at]:
            seen[at] = 1
            column = next_column[at]
            ring += (rows[at], columns[column])
            at = next_row[column]
        outlines.append(ring)
    return outlines


def _points(numbers: Numbers, stride: int) -> list[Point]:
    y, x = np.divmod(numbers, stride)
    return list(zip(x.tolist(), y.tolist(), strict=True))
