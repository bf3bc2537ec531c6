"""Boxes (numpy): overlap, padding to a square and its inverse. A box is x0, y0, x1, y1 in pixels, x1 > x0, y1 > y0."""

from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image

from serve.media.image import Image, Pixels
from serve.media.outline import MAX_PIXELS

Array = np.ndarray[Any, np.dtype[np.float64]]
Box = tuple[float, float, float, float]
Colour = tuple[int, int, int]

LARGER = 4
"""A square of up to this many times the image's pixels is made without shrinking the image."""
SQUARE = 2304
"""The side in pixels to which the image is shrunk otherwise: the largest square that a processor here makes use of
(LLaVA-OneVision's six by six tiles of 384)."""
STRIP = 2**19
"""Pixels that are resampled at a time."""


def iou(a: Array, b: Array) -> Array:
    """Compute the intersection over union of each box in a [n, 4] with each box in b [m, 4]: [n, m] in 0..1."""
    overlap = _overlap(a[:, 0], a[:, 2], b[:, 0], b[:, 2])
    overlap *= _overlap(a[:, 1], a[:, 3], b[:, 1], b[:, 3])
    union = _area(a)[:, None] + _area(b)[None, :]
    union -= overlap
    ratio: Array = np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)
    return ratio


def _overlap(begin: Array, end: Array, starts: Array, stops: Array) -> Array:
    """Compute the length of the overlap of each span begin..end [n] with each span starts..stops [m]: [n, m]."""
    length: Array = np.minimum(end[:, None], stops[None, :])
    length -= np.maximum(begin[:, None], starts[None, :])
    return length.clip(0, None, out=length)


def _area(boxes: Array) -> Array:
    area: Array = np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), axis=1)
    return area


def padding(width: int, height: int) -> tuple[int, int, int]:
    """Return (side, left, top) in pixels: the square that `pad_to_square` makes, and the image's place in it.

    The side is the image's longer side, unless the square would be far larger than the image: one of 16,384 x 1, which
    would become 805 MB of padding, is first shrunk to a side of `SQUARE`.
    """
    side = _square_side(width, height)
    inner_width, inner_height = _inner_size(width, height, side)
    return side, (side - inner_width) // 2, (side - inner_height) // 2


def pad_to_square(image: Image, colour: Colour) -> Image:
    """Return the image centred in a square of one colour; the image itself where it is square already."""
    return image if image.width == image.height else Padded(image, colour)


class Padded(Image):
    """An image centred in a square of one colour. The square is made when `pixels` is first used.

    inner: the image. engines/vllm/multimodal.py, which needs the square at one small size only, makes that from
    `inner`.
    """

    def __init__(self, inner: Image, colour: Colour) -> None:
        digest = None if inner.digest is None else f"{inner.digest}-on-{bytes(colour).hex()}"
        super().__init__(None, digest)
        self.inner, self.colour = inner, colour

    @property
    def pixels(self) -> Pixels:
        if self._pixels is None:
            self._pixels = _pad(self.inner.pixels, self.colour)
        return self._pixels

    @property
    def width(self) -> int:
        return _square_side(self.inner.width, self.inner.height)

    @property
    def height(self) -> int:
        return self.width

    @property
    def undecoded_pixels(self) -> int:
        return self.inner.undecoded_pixels

    def on_release(self, callback: Callable[[], None]) -> None:
        self.inner.on_release(callback)

    def release_pixels(self) -> None:
        self._pixels = None
        self.inner.release_pixels()

    def __reduce__(self) -> tuple[Any, ...]:
        return Padded, (self.inner, self.colour)


def _square_side(width: int, height: int) -> int:
    longer = max(width, height)
    most = min(MAX_PIXELS, max(LARGER * width * height, SQUARE**2))
    return longer if longer**2 <= most else SQUARE


def _inner_size(width: int, height: int, side: int) -> tuple[int, int]:
    """Return width and height of an image in its square: its own, or shrunk in proportion to that side."""
    longer = max(width, height)
    if side == longer:
        return width, height
    return max(1, round(width * side / longer)), max(1, round(height * side / longer))


def _pad(pixels: Pixels, colour: Colour) -> Pixels:
    height, width = pixels.shape[:2]
    side, left, top = padding(width, height)
    if side < max(width, height):
        width, height = _inner_size(width, height, side)
        pixels = _shrink(pixels, width, height)
    square = np.empty((side, side, 3), np.uint8)
    # Whole rows are assigned: assigning each colour channel takes ten times as long.
    square[:] = np.tile(np.array(colour, np.uint8), (side, 1))
    square[top : top + height, left : left + width] = pixels
    return square


def _shrink(pixels: Pixels, width: int, height: int) -> Pixels:
    """Resample along the rows and then along the columns, in strips, since Pillow copies at four bytes a pixel."""
    rows, columns = pixels.shape[:2]
    step = max(1, STRIP // columns)
    narrow = np.empty((rows, width, 3), np.uint8)
    for top in range(0, rows, step):
        strip = PIL.Image.fromarray(pixels[top : top + step])
        narrow[top : top + step] = strip.resize((width, strip.height), PIL.Image.Resampling.BICUBIC)
    return np.asarray(PIL.Image.fromarray(narrow).resize((width, height), PIL.Image.Resampling.BICUBIC))


def from_padded(box: Box, width: int, height: int) -> Box:
    """Convert a box in fractions (0..1) of the padded square to pixels of the width x height image, clipped to it."""
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    x0, y0, x1, y1 = (v * side for v in box)
    return clip((x0 - left, y0 - top, x1 - left, y1 - top), width, height)


def clip(box: Box, width: int, height: int) -> Box:
    """Return the part of the box inside the image, rounded to a hundredth of a pixel."""
    x0, y0, x1, y1 = box
    return (_within(x0, width), _within(y0, height), _within(x1, width), _within(y1, height))


def _within(value: float, limit: int) -> float:
    return round(min(max(value, 0.0), float(limit)), 2)
