"""Masks as run lengths in COCO's compressed form, which pycocotools reads too."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco
from pydantic import BaseModel

Mask = np.ndarray[Any, np.dtype[np.bool_]]
Pixels = np.ndarray[Any, np.dtype[np.int64]]
MOST_PIXELS = 2**34 - 1
"""Pixels of a mask. Sums of its runs do not overflow in less than gigabytes of counts."""
MOST_LETTERS = 7  # characters of a number: 35 bits, which hold MOST_PIXELS and a sign


class Rle(BaseModel):
    """A mask of the whole image. size: height, width; counts: COCO's compressed run lengths, column by column."""

    size: tuple[int, int]
    counts: str


@dataclass(frozen=True)
class Window:
    """A rectangle of whole pixels: rows top..bottom-1, columns left..right-1.

    Empty where right <= left or bottom <= top.
    """

    left: int
    top: int
    right: int
    bottom: int

    @classmethod
    def around(cls, box: tuple[float, float, float, float], width: int, height: int) -> "Window":
        """Return the pixels of a width x height image that a box x0, y0, x1, y1 touches."""
        x0, y0, x1, y1 = box
        left, top = max(0, math.floor(x0)), max(0, math.floor(y0))
        return cls(left, top, max(left, min(width, math.ceil(x1))), max(top, min(height, math.ceil(y1))))

    @property
    def shape(self) -> tuple[int, int]:
        """Return the numbers of rows and columns."""
        return self.bottom - self.top, self.right - self.left

    @property
    def rows(self) -> range:
        return range(self.top, self.bottom)

    @property
    def columns(self) -> range:
        return range(self.left, self.right)


def encode(mask: Mask) -> Rle:
    """Encode a mask [height, width]."""
    height, width = mask.shape
    return encode_in(mask, Window(0, 0, width, height), (height, width))


def encode_in(mask: Mask, window: Window, size: tuple[int, int]) -> Rle:
    """Encode the mask [rows, columns] of a window, empty around it, in an image of `size` (height, width).

    The cost grows with the window, not with the image. Raises ValueError where mask, window and image do not fit.
    """
    height, width = size
    rows, columns = window.shape
    if mask.shape != (rows, columns) or window.right > width or window.bottom > height:
        raise ValueError(f"a mask of {mask.shape} does not fit {window} of an image of {size}")
    # One more row, empty, separates a column's end from the start of the next.
    flat = np.zeros((columns, rows + 1), bool)
    flat[:, :rows] = mask.T
    changes = np.flatnonzero(np.diff(flat.ravel(), prepend=False))
    column, row = np.divmod(changes, rows + 1)
    starts = (window.left + column) * height + window.top + row
    if rows == height:  # a run that goes on in the next column is one run
        seam = np.flatnonzero(starts[1:] == starts[:-1])
        starts = np.delete(starts, np.concatenate((seam, seam + 1)))
    edges = np.concatenate(([0], starts, [height * width]))
    runs = np.diff(edges)
    if len(runs) > 1 and runs[-1] == 0:
        runs = runs[:-1]  # the mask's last pixel is the image's
    return Rle(size=(height, width), counts=_pack(runs))


def decode(rle: Rle) -> Mask:
    """Decode a mask [height, width]. Raises ValueError where the runs do not fill it exactly."""
    height, width = rle.size
    return decode_in(rle, Window(0, 0, width, height))


def decode_in(rle: Rle, window: Window) -> Mask:
    """Decode the part of a mask in a window: [rows, columns]. Raises ValueError as `decode` does."""
    height, width = rle.size
    edges = np.cumsum(_runs(rle))
    begin, end = window.left * height, window.right * height
    first, last = np.searchsorted(edges, (begin, end), side="right")
    runs = np.diff(np.clip(edges[first : last + 1], begin, end), prepend=begin, append=end)
    columns = np.repeat((first + np.arange(len(runs))) % 2 == 1, runs).reshape((window.right - window.left, height))
    return columns[:, window.top : window.bottom].T


def sample(rle: Rle, rows: Pixels, columns: Pixels) -> Mask:
    """Decode the pixels of a mask at these rows and columns: [rows, columns]. Raises ValueError as `decode` does.

    The cost grows with the number of pixels returned, not with the image.
    """
    edges = np.cumsum(_runs(rle))
    places = columns[:, None] * rle.size[0] + rows[None, :]
    inside: Mask = (np.searchsorted(edges, places, side="right") % 2 == 1).T
    return inside


def area(rle: Rle) -> int:
    """Return the number of pixels in the mask."""
    return int(_runs(rle)[1::2].sum())


def overlap(a: Rle, b: Rle) -> float:
    """Compute the intersection over union of two valid masks; 0 where their sizes differ, 1 where both are empty."""
    if a.size != b.size:
        return 0.0
    encoded = [{"size": list(rle.size), "counts": rle.counts.encode("ascii")} for rle in (a, b)]
    if not coco.area(encoded).any():
        return 1.0
    return float(coco.iou(encoded[:1], encoded[1:], [False])[0, 0])


def _runs(rle: Rle) -> Pixels:
    runs, pixels = _unpack(rle.counts), rle.size[0] * rle.size[1]
    # Each run is checked before the sum, which long ones overflow.
    if pixels > MOST_PIXELS or ((runs < 0) | (runs > pixels)).any() or runs.sum() != pixels:
        raise ValueError("the run lengths do not fill the mask")
    return runs


def _pack(runs: Pixels) -> str:
    """Encode runs as COCO's characters.

    Each holds five bits, lowest first, and a sixth bit that is set where more follow. From the fourth run on a run is
    written as the difference to the run before the last; the sign is the fifth bit of its last character.
    """
    values = runs.astype(np.int64)
    values[3:] -= runs[1:-2]
    letters: list[Pixels] = []
    more = np.ones(len(values), bool)
    used: list[Mask] = []
    while more.any():
        bits = values & 31
        values = values >> 5
        used.append(more)
        more = more & (values != np.where(bits & 16, -1, 0))
        letters.append((bits | np.where(more, 32, 0)) + 48)
    if not letters:
        return ""
    return np.stack(letters, axis=1)[np.stack(used, axis=1)].astype(np.uint8).tobytes().decode("ascii")


def _unpack(counts: str) -> Pixels:
    """Decode COCO's characters to runs. Raises ValueError where they are malformed."""
    try:
        letters = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError:
        raise ValueError("there are letters that are none of a run length") from None
    if ((letters < 0) | (letters > 63)).any():
        raise ValueError("there are letters that are none of a run length")
    last = np.flatnonzero(letters < 32)
    if len(letters) and (not len(last) or last[-1] != len(letters) - 1):
        raise ValueError("the run lengths are cut short")
    first = np.concatenate(([0], last[:-1] + 1)) if len(last) else last
    long = last - first + 1
    if len(long) and long.max() > MOST_LETTERS:
        raise ValueError("a run is longer than any mask")
    place = np.arange(len(letters)) - np.repeat(first, long)
    runs: Pixels = np.add.reduceat((letters & 31) << 5 * place, first) if len(last) else last
    runs = runs - np.where(letters[last] & 16, 1 << 5 * long, 0)
    for start in (1, 2):  # from the fourth on each is the difference to the one before the last
        runs[start::2] = np.cumsum(runs[start::2])
    return runs
