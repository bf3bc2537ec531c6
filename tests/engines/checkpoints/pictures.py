"""Pictures and films of noise: in many shapes, and as the odd files that people send."""

import io
from typing import Any

import numpy as np
import PIL.Image

from serve.media.image import Image, decode
from serve.media.video import Video

SHAPES = [(56, 56), (40, 80), (90, 30), (8, 8), (120, 100), (57, 55)]


def pictures(count: int) -> list[Image]:
    """Wide, tall, tiny, larger than the model's square."""
    rng = np.random.default_rng(3)
    return [Image(_noise(rng, *SHAPES[i % len(SHAPES)], 3)) for i in range(count)]


def odd_pictures() -> list[Image]:
    """Files through the server's own decoder: 1:8 and 8:1, grey, grey with alpha, a speck, one turned by its EXIF."""
    rng = np.random.default_rng(4)
    turned = PIL.Image.Exif()
    turned[0x0112] = 6
    files = [
        _file(_noise(rng, 16, 128, 3), "PNG"),
        _file(_noise(rng, 240, 30, 3), "PNG"),
        _file(_noise(rng, 50, 70), "PNG"),
        _file(_noise(rng, 60, 40, 2), "PNG"),
        _file(_noise(rng, 5, 3, 3), "PNG"),
        _file(_noise(rng, 48, 96, 3), "JPEG", exif=turned),
    ]
    return [decode(file) for file in files]


def films(count: int) -> list[Video]:
    """4 and 8 frames, in as many shapes as the pictures."""
    rng = np.random.default_rng(6)
    made = []
    for i in range(count):
        frames = 4 if i % 2 else 8
        film = _noise(rng, frames, *SHAPES[i % len(SHAPES)], 3)
        made.append(Video(film, tuple(at / 2 for at in range(frames)), frames / 2))
    return made


def _noise(rng: np.random.Generator, *shape: int) -> Any:
    return rng.integers(0, 256, shape, dtype=np.uint8)


def _file(pixels: Any, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, form, **options)
    return stream.getvalue()
