"""Label Studio's run lengths of brush masks: bits of (how many values, the value), packed into bytes.

The bits begin with the number of values in 32, the width of a value less one in 5, and four widths of a count less one
in 4 each. Then come blocks: one bit that is set where a value repeats, two that choose the count's width, the count
less one, and the value, or as many values as were counted. A mask is the picture's pixels row by row, four equal values
of 0 or 255 each.
"""

from collections.abc import Sequence

import numpy as np

from serve.media.masks import Mask

WIDTHS = (3, 4, 8, 16)
"""Bits of a count, of those that are written."""
MAX_VALUES = 4 * 40_000_000
"""Of a picture of 40 megapixels, the largest that is served."""


def encode_brush(mask: Mask) -> list[int]:
    """Return a mask [height, width] as bytes."""
    flat = mask.ravel()
    starts = np.concatenate(([0], np.flatnonzero(np.diff(flat)) + 1))
    lengths = 4 * np.diff(np.concatenate((starts, [flat.size])))
    bits = [f"{4 * flat.size:032b}{7:05b}", *(f"{width - 1:04b}" for width in WIDTHS)]
    most = 1 << WIDTHS[-1]
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        value = "11111111" if flat[start] else "00000000"
        while length:
            count = min(length, most)
            choice = next(at for at, width in enumerate(WIDTHS) if count <= 1 << width)
            bits.append(f"1{choice:02b}{count - 1:0{WIDTHS[choice]}b}{value}")
            length -= count
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return [int(text[at : at + 8], 2) for at in range(0, len(text), 8)]


def decode_brush(data: Sequence[int], size: tuple[int, int]) -> Mask:
    """Return the mask [height, width] in these bytes. Raises ValueError where they are not one of this size."""
    height, width = size
    try:
        packed = np.array(data, dtype=np.uint8)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("an rle is a list of bytes") from None
    reader = _Bits(np.unpackbits(packed).astype("S1").tobytes().decode())
    total, bits = reader.take(32), reader.take(5) + 1
    widths = [reader.take(4) + 1 for _ in range(4)]
    if total != 4 * height * width or total > MAX_VALUES:
        raise ValueError("the rle is another picture's")
    values = np.zeros(total, np.uint8)
    at = 0
    while at < total:
        repeated = reader.take(1)
        end = at + 1 + reader.take(widths[reader.take(2)])
        if end > total:
            raise ValueError("the rle is longer than its picture")
        if repeated:
            values[at:end] = min(255, reader.take(bits))
        else:
            values[at:end] = [min(255, reader.take(bits)) for _ in range(end - at)]
        at = end
    mask: Mask = values.reshape(height, width, 4)[:, :, 3] > 0
    return mask


class _Bits:
    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def take(self, count: int) -> int:
        """Return the number in the next bits. Raises ValueError where they end."""
        self.at += count
        if self.at > len(self.text):
            raise ValueError("the rle is cut short")
        return int(self.text[self.at - count : self.at], 2)
