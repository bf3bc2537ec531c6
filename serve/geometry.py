"""Boxes (numpy): overlap, padding to a square and its inverse. A box is x0, y0, x1, y1 in pixels, x1 > x0, y1 > y0."""

from typing import Any

import numpy as np

from serve.image import Image

Array = np.ndarray[Any, np.dtype[np.float64]]
Box = tuple[float, float, float, float]


def iou(a: Array, b: Array) -> Array:
    """Intersection over union of every box in a [n, 4] with every box in b [m, 4]: [n, m] in 0..1."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    overlap = np.prod(np.clip(high - low, 0, None), axis=2)
    union = _area(a)[:, None] + _area(b)[None, :] - overlap
    ratio: Array = np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)
    return ratio


def _area(boxes: Array) -> Array:
    area: Array = np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), axis=1)
    return area


def padding(width: int, height: int) -> tuple[int, int, int]:
    """(side, left, top) of the square that `pad_to_square` makes of a width x height picture."""
    side = max(width, height)
    return side, (side - width) // 2, (side - height) // 2


def pad_to_square(image: Image, colour: tuple[int, int, int]) -> Image:
    """The picture in the middle of a square of one colour; the picture itself where it is square already."""
    side, left, top = padding(image.width, image.height)
    if image.width == image.height:
        return image
    square = np.empty((side, side, 3), np.uint8)
    # A row at a time: colour by colour takes ten times as long.
    square[:] = np.tile(np.array(colour, np.uint8), (side, 1))
    square[top : top + image.height, left : left + image.width] = image.pixels
    return Image(square)


def from_padded(box: Box, width: int, height: int) -> Box:
    """A box in fractions (0..1) of the padded square -> pixels of the width x height picture, clipped to it."""
    side, left, top = padding(width, height)
    x0, y0, x1, y1 = (v * side for v in box)
    return clip((x0 - left, y0 - top, x1 - left, y1 - top), width, height)


def clip(box: Box, width: int, height: int) -> Box:
    """The part of the box inside the picture, to a hundredth of a pixel."""
    x0, y0, x1, y1 = box
    return (_within(x0, width), _within(y0, height), _within(x1, width), _within(y1, height))


def _within(value: float, limit: int) -> float:
    return round(min(max(value, 0.0), float(limit)), 2)
