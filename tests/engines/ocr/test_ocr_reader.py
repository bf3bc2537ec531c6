"""RapidOCR itself, where it is installed, reads drawn words: straight, tilted, and as a photograph might show them."""

import json

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import pytest

from serve.engines.base import Prompt
from serve.engines.ocr.engine import READ, OcrEngine
from serve.engines.ocr.reader import is_installed
from serve.media.image import Image

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_installed(), reason="RapidOCR is not installed: pip install 'diptych[ocr]'"),
    pytest.mark.filterwarnings("ignore"),  # its own and its packages'
]
INVOICE = {(40, 40): "INVOICE 2026", (40, 140): "Total: 123.45 EUR", (40, 220): "left", (340, 220): "right"}


def drawn(words: dict[tuple[int, int], str], size: tuple[int, int] = (640, 300)) -> PIL.Image.Image:
    picture = PIL.Image.new("RGB", size, "white")
    for place, text in words.items():
        PIL.ImageDraw.Draw(picture).text(place, text, "black", PIL.ImageFont.load_default(size=36))
    return picture


def photographed(picture: PIL.Image.Image) -> PIL.Image.Image:
    """Return the picture in uneven light, with noise, turned a little."""
    noise = np.random.default_rng(0).normal(10, 18, (*picture.size[::-1], 3))
    light = np.linspace(0.4, 0.8, picture.width)[None, :, None]
    pixels = (np.asarray(picture) * light + noise).clip(0, 255).astype(np.uint8)
    return PIL.Image.fromarray(pixels).rotate(-4, fillcolor=(120, 110, 100))


async def replies(*prompts: tuple[PIL.Image.Image, str]) -> list[str]:
    engine = OcrEngine()
    await engine.start()
    texts = []
    for picture, text in prompts:
        prompt = Prompt(text, Image(np.asarray(picture)))
        texts.append("".join([piece.text async for piece in engine.generate(prompt)]))
    await engine.stop()
    return texts


async def test_drawn_words_have_their_text_and_places() -> None:
    tilted = drawn({(20, 30): "Platform nine"}, (400, 120)).rotate(12, expand=True, fillcolor="white")
    blank = PIL.Image.new("RGB", (300, 200), "grey")
    text = "INVOICE 2026\nTotal: 123.45 EUR\nleft right"
    straight, photo, leaning, place, nothing, thin = await replies(
        (drawn(INVOICE), READ),
        (photographed(drawn(INVOICE)), READ),
        (tilted, READ),
        (drawn(INVOICE), '["total", "invoice 2026", "exit"]'),
        (blank, READ),
        (PIL.Image.new("RGB", (5000, 3)), READ),
    )
    assert (straight, photo, leaning, nothing, thin) == (text, text, "Platform nine", "", "")
    boxes = {item["label"]: item["bbox_2d"] for item in json.loads(place)}
    assert list(boxes) == ["invoice 2026", "total"]
    x0, y0, x1, y1 = boxes["total"]
    assert 30 <= x0 <= 45 and 120 < x1 < 160 and 135 < y0 < 155 and 165 < y1 < 195
