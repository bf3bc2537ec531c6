"""Pictures that no cache has seen, each different from every other, and requests about them."""

import base64
import io
import itertools
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import PIL.Image

from serve.toy import world

QUESTION = "what is in the picture?"
SIDES = {"1x": (224, 224), "2mp": (1600, 1200), "12mp": (4000, 3000)}  # width, height; a phone's picture is the last
QUALITY = 88


def pictures(size: str, seed: int) -> Iterator[bytes]:
    """Yield JPEG files without end, of one size ("1x" or "12mp"), the same for the same seed.

    Large soft shapes with a little noise: about 8 KB at 224 x 224 and 1.5 MB at 12 megapixels, as photographs are.
    """
    random = np.random.default_rng(seed)
    while True:
        soft = PIL.Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        yield _jpeg(soft.resize(SIDES[size], PIL.Image.Resampling.BILINEAR), random)


def scenes(size: str, seed: int) -> Iterator[tuple[bytes, list[str]]]:
    """Yield JPEG files of the toys' drawn scenes without end, each with the names of its shapes."""
    random = np.random.default_rng(seed)
    while True:
        scene = world.scene(int(random.integers(2**31)))
        scale = min(side / own for side, own in zip(SIDES[size], scene.size, strict=True))
        yield _jpeg(world.draw(scene, scale), random), [shape.name for shape in scene.shapes]


def _jpeg(picture: PIL.Image.Image, random: np.random.Generator) -> bytes:
    """Encode the picture with grain, as a camera adds it: it makes the file as large as a photograph's."""
    pixels = np.asarray(picture, dtype=np.int16)
    height, width = pixels.shape[:2]
    grain = random.integers(-6, 7, (min(height, 500), min(width, 500), 1), dtype=np.int16)
    tiles = -(-height // grain.shape[0]), -(-width // grain.shape[1]), 1
    grain = np.tile(grain, tiles)[:height, :width]
    out = io.BytesIO()
    PIL.Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8)).save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def bodies(model: str, size: str, count: int, *, tokens: int, stream: bool, seed: int, repeat: int = 0) -> list[bytes]:
    """Return `count` requests for /v1/chat/completions, each about another picture, or about `repeat` in turn.

    tokens: the exact length of the reply, by `ignore_eos`.
    """
    drawn = list(itertools.islice(pictures(size, seed), repeat or count))
    return [body(model, drawn[at % len(drawn)], tokens=tokens, stream=stream) for at in range(count)]


def body(model: str, picture: bytes, *, stream: bool, text: str = QUESTION, tokens: int = 0) -> bytes:
    """Return a request as any OpenAI client sends it. tokens: 0 leaves the reply's length to the model."""
    content = [{"type": "image_url", "image_url": {"url": data_url(picture)}}, {"type": "text", "text": text}]
    messages = [{"role": "user", "content": content}]
    request: dict[str, Any] = {"model": model, "messages": messages, "temperature": 0, "stream": stream}
    if tokens:
        request |= {"max_tokens": tokens, "ignore_eos": True}
    if stream:
        request["stream_options"] = {"include_usage": True}
    return json.dumps(request).encode()


def data_url(picture: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(picture).decode()
