"""A file whose outline was checked as upright RGB, strip by strip. Knows Pillow, and no numpy."""

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
"""Pixels that are copied at once: what is copied is then still in the processor's cache, which halves the time."""

# What Pillow raises for bytes it cannot make sense of. Warnings are among them where they are made errors.
DAMAGE = (
    *(OSError, SyntaxError, ValueError, EOFError, TypeError, LookupError, ArithmeticError, struct.error, Warning),
    *(PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning),
)
# Set once: catch_warnings() swaps the filters of the whole process.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.WARNING)  # at DEBUG it logs what cameras write of places and people

_TRANSPOSE = PIL.Image.Transpose
_TURNS = {  # EXIF orientation -> what brings the picture upright
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


def loaded(data: bytes, found: Outline) -> PIL.Image.Image:
    """The file's pixels as they are stored. Raises one of DAMAGE, or MemoryError."""
    picture = PIL.Image.open(io.BytesIO(pixel_file(data, found)), formats=FORMATS)
    if picture.size != found.stored:
        raise ValueError("another size than its header says")
    picture.load()
    return picture


def strips(picture: PIL.Image.Image, orientation: int) -> Iterator[PIL.Image.Image]:
    """The upright picture from top to bottom in strips, RGB, as on a white page where it is transparent.

    Apart from `picture` itself only a strip is in memory.
    """
    width, height = picture.size
    across, along = (height, width) if orientation > 4 else (width, height)
    step = max(1, STRIP // across)
    starts = range(0, along, step)
    for start in reversed(starts) if orientation in _FROM_THE_END else starts:
        end = min(along, start + step)
        whole = start == 0 and end == along
        box = (start, 0, end, height) if orientation > 4 else (0, start, width, end)
        strip = _on_white(_eight_bit(picture if whole else picture.crop(box)))
        strip = strip if strip.mode == "RGB" else strip.convert("RGB")
        yield strip.transpose(_TURNS[orientation]) if orientation > 1 else strip


def is_plain(picture: PIL.Image.Image, orientation: int) -> bool:
    """Whether the picture is upright RGB as it is."""
    return picture.mode == "RGB" and orientation == 1 and "transparency" not in picture.info


def _eight_bit(picture: PIL.Image.Image) -> PIL.Image.Image:
    """Pillow cuts 16-bit greys off at 255, so that nearly all come out white: keep the upper eight bits instead."""
    if not picture.mode.startswith("I;16"):
        return picture
    values, big = picture.tobytes(), picture.mode == "I;16B"
    high = PIL.Image.frombytes("L", picture.size, values[1 - big :: 2])
    clear = picture.info.get("transparency")
    if clear is not None:
        low = PIL.Image.frombytes("L", picture.size, values[big::2])
        differs = [
            part.point([0 if value == wanted else 255 for value in range(256)])
            for part, wanted in ((high, clear >> 8), (low, clear & 255))
        ]
        high.putalpha(PIL.ImageChops.lighter(*differs))
    return high


def _on_white(picture: PIL.Image.Image) -> PIL.Image.Image:
    """Transparent pictures are seen as on a white page, not on whatever colour hides under alpha 0."""
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        seen = picture.convert("RGBA")
        page = PIL.Image.new("RGBA", seen.size, "white")
        return PIL.Image.alpha_composite(page, seen)
    return picture
