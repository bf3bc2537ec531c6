"""Decode an image file with Pillow into upright RGB strips. The file's outline was checked. Imports no numpy."""

import io
import logging
import struct
import warnings
from collections.abc import Iterator

import PIL.Image
import PIL.ImageChops

from serve.media.outline import Outline, pixel_file

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
STRIP = 2**19
"""Pixels that are converted at once: a strip stays in the processor's cache, which halves the time."""

# What Pillow raises for malformed bytes. Warnings are among them where they are raised as errors.
DAMAGE = (
    *(OSError, SyntaxError, ValueError, EOFError, TypeError, LookupError, ArithmeticError, struct.error, Warning),
    *(PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning),
)
# Set once: catch_warnings() swaps the filters of the whole process.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.WARNING)  # at DEBUG it logs EXIF values such as places

_TRANSPOSE = PIL.Image.Transpose
_TRANSPOSITIONS = {  # EXIF orientation -> the transposition that makes the image upright
    2: _TRANSPOSE.FLIP_LEFT_RIGHT,
    3: _TRANSPOSE.ROTATE_180,
    4: _TRANSPOSE.FLIP_TOP_BOTTOM,
    5: _TRANSPOSE.TRANSPOSE,
    6: _TRANSPOSE.ROTATE_270,
    7: _TRANSPOSE.TRANSVERSE,
    8: _TRANSPOSE.ROTATE_90,
}
_FROM_THE_END = (3, 4, 7, 8)
"""Orientations whose first row is the file's last row or column."""


def load(data: bytes, outline: Outline) -> PIL.Image.Image:
    """Decode the file's pixels as they are stored, not yet upright. Raises one of DAMAGE, or MemoryError."""
    image = PIL.Image.open(io.BytesIO(pixel_file(data, outline)), formats=FORMATS)
    if image.size != outline.stored:
        raise ValueError("another size than its header says")
    image.load()
    return image


def strips(image: PIL.Image.Image, orientation: int) -> Iterator[PIL.Image.Image]:
    """Yield the upright image from top to bottom in RGB strips, blended with white where it is transparent.

    orientation: EXIF's, 1..8. Beside `image` only one strip is in memory.
    """
    width, height = image.size
    across, along = (height, width) if orientation > 4 else (width, height)
    step = max(1, STRIP // across)
    starts = range(0, along, step)
    for start in reversed(starts) if orientation in _FROM_THE_END else starts:
        end = min(along, start + step)
        whole = start == 0 and end == along
        box = (start, 0, end, height) if orientation > 4 else (0, start, width, end)
        strip = _on_white(_eight_bit(image if whole else image.crop(box)))
        strip = strip if strip.mode == "RGB" else strip.convert("RGB")
        yield strip.transpose(_TRANSPOSITIONS[orientation]) if orientation > 1 else strip


def is_plain(image: PIL.Image.Image, orientation: int) -> bool:
    """Return whether the stored image is upright opaque RGB, so that it needs no conversion."""
    return image.mode == "RGB" and orientation == 1 and "transparency" not in image.info


def _eight_bit(image: PIL.Image.Image) -> PIL.Image.Image:
    """Reduce 16-bit grey to its upper eight bits. Pillow would clip at 255, which makes nearly all of it white."""
    if not image.mode.startswith("I;16"):
        return image
    values, big = image.tobytes(), image.mode == "I;16B"
    high = PIL.Image.frombytes("L", image.size, values[1 - big :: 2])
    clear = image.info.get("transparency")
    if clear is not None:
        low = PIL.Image.frombytes("L", image.size, values[big::2])
        differs = [
            part.point([0 if value == wanted else 255 for value in range(256)])
            for part, wanted in ((high, clear >> 8), (low, clear & 255))
        ]
        high.putalpha(PIL.ImageChops.lighter(*differs))
    return high


def _on_white(image: PIL.Image.Image) -> PIL.Image.Image:
    """Blend a transparent image with white; the colours under alpha 0 are arbitrary."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return PIL.Image.alpha_composite(PIL.Image.new("RGBA", rgba.size, "white"), rgba)
    return image
