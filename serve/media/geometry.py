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
"""A square of up to so many times the picture's own pixels is made of the picture as it is."""
SQUARE = 2304
"""Otherwise a picture is shrunk to that many pixels first, and never enlarged: the most that a processor here makes of
a square (LLaVA-OneVision's six by six tiles of 384)."""
STRIP = 2**19
"""Pixels that are resampled at once."""


def iou(a: Array, b: Array) -> Array:
    """Intersection over union of every box in a [n, 4] with every box in b [m, 4]: [n, m] in 0..1."""
    overlap = _overlap(a[:, 0], a[:, 2], b[:, 0], b[:, 2])
    overlap *= _overlap(a[:, 1], a[:, 3], b[:, 1], b[:, 3])
    union = _area(a)[:, None] + _area(b)[None, :]
    union -= overlap
    ratio: Array = np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)
    return ratio


def _overlap(begin: Array, end: Array, starts: Array, stops: Array) -> Array:
    """How much of each span begin..end [n] lies in each of starts..stops [m]: [n, m]."""
    length: Array = np.minimum(end[:, None], stops[None, :])
    length -= np.maximum(begin[:, None], starts[None, :])
    return length.clip(0, None, out=length)


def _area(boxes: Array) -> Array:
    area: Array = np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), axis=1)
    return area


def padding(width: int, height: int) -> tuple[int, int, int]:
    """Return (side, left, top): the square that `pad_to_square` makes, and where in it the picture begins.

    The side is the picture's longer one, unless the square would be far larger than the picture: a picture of 16,384 x
    1 is first shrunk to `SQUARE` pixels, where it was to become 805 MB of padding.
    """
    side = _square_side(width, height)
    inner_width, inner_height = _inside(width, height, side)
    return side, (side - inner_width) // 2, (side - inner_height) // 2


def pad_to_square(image: Image, colour: Colour) -> Image:
    """Return the picture in the middle of a square of one colour; the picture itself where it is square already."""
    return image if image.width == image.height else Padded(image, colour)


class Padded(Image):
    """A picture in the middle of a square of one colour. The square is made when its pixels are first looked at.

    inner: the picture. What needs the square at one small size only (engines/vllm/multimodal.py) makes that of `inner`.
    """

    def __init__(self, inner: Image, colour: Colour) -> None:
        named = None if inner.digest is None else f"{inner.digest}-on-{bytes(colour).hex()}"
        super().__init__(None, named)
        self.inner, self.colour = inner, colour

    @property
    def pixels(self) -> Pixels:
        if self._pixels is None:
            self._pixels = _padded(self.inner.pixels, self.colour)
        return self._pixels

    @property
    def width(self) -> int:
        return _square_side(self.inner.width, self.inner.height)

    @property
    def height(self) -> int:
        return self.width

    @property
    def left_to_read(self) -> int:
        return self.inner.left_to_read

    def held(self, given_back: Callable[[], None]) -> None:
        self.inner.held(given_back)

    def put_away(self) -> None:
        self._pixels = None
        self.inner.put_away()

    def __reduce__(self) -> tuple[Any, ...]:
        return Padded, (self.inner, self.colour)


def _square_side(width: int, height: int) -> int:
    longer = max(width, height)
    most = min(MAX_PIXELS, max(LARGER * width * height, SQUARE**2))
    return longer if longer**2 <= most else SQUARE


def _inside(width: int, height: int, side: int) -> tuple[int, int]:
    """Return width and height that a picture has in a square of that side: its own, or shrunk in proportion."""
    longer = max(width, height)
    if side == longer:
        return width, height
    return max(1, round(width * side / longer)), max(1, round(height * side / longer))


def _padded(pixels: Pixels, colour: Colour) -> Pixels:
    height, width = pixels.shape[:2]
    side, left, top = padding(width, height)
    if side < max(width, height):
        width, height = _inside(width, height, side)
        pixels = _shrunk(pixels, width, height)
    square = np.empty((side, side, 3), np.uint8)
    # A row at a time: colour by colour takes ten times as long.
    square[:] = np.tile(np.array(colour, np.uint8), (side, 1))
    square[top : top + height, left : left + width] = pixels
    return square


def _shrunk(pixels: Pixels, width: int, height: int) -> Pixels:
    """Resample along the rows and then along the columns, some rows at a time: Pillow makes copies, of four bytes a
    pixel."""
    rows, columns = pixels.shape[:2]
    step = max(1, STRIP // columns)
    narrow = np.empty((rows, width, 3), np.uint8)
    for top in range(0, rows, step):
        strip = PIL.Image.fromarray(pixels[top : top + step])
        narrow[top : top + step] = strip.resize((width, strip.height), PIL.Image.Resampling.BICUBIC)
    return np.asarray(PIL.Image.fromarray(narrow).resize((width, height), PIL.Image.Resampling.BICUBIC))


def from_padded(box: Box, width: int, height: int) -> Box:
    """A box in fractions (0..1) of the padded square -> pixels of the width x height picture, clipped to it."""
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    x0, y0, x1, y1 = (v * side for v in box)
    return clip((x0 - left, y0 - top, x1 - left, y1 - top), width, height)


def clip(box: Box, width: int, height: int) -> Box:
    """The part of the box inside the picture, to a hundredth of a pixel."""
    x0, y0, x1, y1 = box
    return (_within(x0, width), _within(y0, height), _within(x1, width), _within(y1, height))


def _within(value: float, limit: int) -> float:
    return round(min(max(value, 0.0), float(limit)), 2)
