"""Masks as run lengths, in COCO's compressed form: small on the wire, and what pycocotools reads."""

from typing import Any

import numpy as np
from pydantic import BaseModel

Mask = np.ndarray[Any, np.dtype[np.bool_]]


class Rle(BaseModel):
    """A mask of the whole image. size: height, width; counts: COCO's compressed run lengths, column by column."""

    size: tuple[int, int]
    counts: str


def encode(mask: Mask) -> Rle:
    """A mask [height, width] as run lengths."""
    height, width = mask.shape
    flat = mask.ravel(order="F")
    turns = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate(([0], turns, [flat.size]))).tolist()
    if flat.size and flat[0]:
        runs.insert(0, 0)  # the first run is of what is not in the mask
    return Rle(size=(height, width), counts=_pack(runs))


def decode(rle: Rle) -> Mask:
    """The mask [height, width] of run lengths. Raises ValueError where they do not fill it."""
    height, width = rle.size
    runs = np.array(_unpack(rle.counts), dtype=np.int64)
    if (runs < 0).any() or runs.sum() != height * width:
        raise ValueError("the run lengths do not fill the mask")
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape((height, width), order="F")


def _pack(runs: list[int]) -> str:
    """COCO's letters: five bits each, lowest first, the sixth says that more follow; from the fourth run on a run is
    written as its difference to the one before the last (the sign is the last letter's fifth bit)."""
    letters = []
    for at, run in enumerate(runs):
        value = run - runs[at - 2] if at > 2 else run
        more = True
        while more:
            bits = value & 31
            value >>= 5
            more = value != (-1 if bits & 16 else 0)
            letters.append(chr((bits | 32 if more else bits) + 48))
    return "".join(letters)


def _unpack(counts: str) -> list[int]:
    runs: list[int] = []
    value = shift = 0
    for letter in counts:
        bits = ord(letter) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"{letter!r} is no letter of a run length")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("the run lengths are cut short")
    return runs
