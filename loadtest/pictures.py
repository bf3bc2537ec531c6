"""Pictures that no cache has seen: each request's differs from every other's."""

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import PIL.Image

QUESTION = "what is in the picture?"
SIDES = {"1x": (224, 224), "12mp": (4000, 3000)}  # width, height; a phone's picture is the second
QUALITY = 88


def pictures(size: str, seed: int) -> Iterator[bytes]:
    """JPEG files without end, of one size ("1x" or "12mp"), the same for the same seed.

    Large soft shapes with a little noise: about 8 KB at 224 x 224 and 1.5 MB at 12 megapixels, as photographs are.
    """
    random = np.random.default_rng(seed)
    width, height = SIDES[size]
    while True:
        soft = PIL.Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        pixels = np.asarray(soft.resize((width, height), PIL.Image.Resampling.BILINEAR), dtype=np.int16)
        grain = random.integers(-6, 7, (min(height, 500), min(width, 500), 1), dtype=np.int16)
        tiles = -(-height // grain.shape[0]), -(-width // grain.shape[1]), 1
        grain = np.tile(grain, tiles)[:height, :width]
        out = io.BytesIO()
        PIL.Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8)).save(out, "JPEG", quality=QUALITY)
        yield out.getvalue()


def bodies(model: str, size: str, count: int, *, tokens: int, stream: bool, seed: int, repeat: int = 0) -> list[bytes]:
    """Requests for /v1/chat/completions, `count` of them, each about another picture, or about `repeat` in turn.

    tokens: the exact length of the reply, by `ignore_eos`.
    """
    made = pictures(size, seed)
    drawn = [next(made) for _ in range(repeat or count)]
    return [body(model, drawn[at % len(drawn)], tokens=tokens, stream=stream) for at in range(count)]


def body(model: str, picture: bytes, *, tokens: int, stream: bool, text: str = QUESTION) -> bytes:
    """One request, as any OpenAI client sends it."""
    url = "data:image/jpeg;base64," + base64.b64encode(picture).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
    asked: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": stream,
    }
    if stream:
        asked["stream_options"] = {"include_usage": True}
    return json.dumps(asked).encode()
