"""Images and videos of noise in many shapes, and in odd file formats."""

import io
from typing import Any

import numpy as np
import PIL.Image

from serve.media.image import Image, decode_image
from serve.media.video import Video

SHAPES = [(56, 56), (40, 80), (90, 30), (8, 8), (120, 100), (57, 55)]


def pictures(count: int) -> list[Image]:
    """Return wide, tall and tiny images, some larger than the model's square."""
    rng = np.random.default_rng(3)
    return [Image(_noise(rng, *SHAPES[i % len(SHAPES)], 3)) for i in range(count)]


def odd_pictures() -> list[Image]:
    """Decode files of 1:8 and 8:1, grey, grey with alpha, 3 x 5 pixels, and with an EXIF orientation."""
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
    return [decode_image(file) for file in files]


def films(count: int) -> list[Video]:
    """Return videos of 4 and 8 frames, in the shapes of the images."""
    rng = np.random.default_rng(6)
    videos = []
    for i in range(count):
        frames = 4 if i % 2 else 8
        frames_of_noise = _noise(rng, frames, *SHAPES[i % len(SHAPES)], 3)
        videos.append(Video(frames_of_noise, tuple(at / 2 for at in range(frames)), frames / 2))
    return videos


def _noise(rng: np.random.Generator, *shape: int) -> Any:
    return rng.integers(0, 256, shape, dtype=np.uint8)


def _file(pixels: Any, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, form, **options)
    return stream.getvalue()
