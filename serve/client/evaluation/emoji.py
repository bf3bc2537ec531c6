"""Emoji as a labelled set: things that nobody here drew, with exact boxes and masks, on plain and graded grounds.

They come from Noto Color Emoji (SIL Open Font Licence 1.1), of the package fonts-noto-color-emoji.
"""

import functools
import random
from collections.abc import Mapping

from PIL import Image, ImageDraw, ImageFont

from serve.client.evaluation.packages import packaged_file
from serve.client.evaluation.things import CANVAS, ThingSet
from serve.toy.varied.names import with_article

FONT = "usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
PIXELS = 109
"""The only size that the font has."""
EMOJI = {
    "dog": "🐕", "cat": "🐈", "horse": "🐎", "cow": "🐄", "pig": "🐖", "elephant": "🐘", "penguin": "🐧", "owl": "🦉",
    "snail": "🐌", "butterfly": "🦋", "whale": "🐳", "turtle": "🐢", "apple": "🍎", "banana": "🍌", "strawberry": "🍓",
    "pineapple": "🍍", "carrot": "🥕", "hamburger": "🍔", "pizza": "🍕", "tree": "🌳", "cactus": "🌵",
    "sunflower": "🌻", "umbrella": "☂", "car": "🚗", "bus": "🚌", "bicycle": "🚲", "airplane": "✈", "rocket": "🚀",
    "sailboat": "⛵", "guitar": "🎸", "trumpet": "🎺", "key": "🔑", "book": "📕", "clock": "⏰",
    "camera": "📷", "hat": "🎩", "shoe": "👟", "house": "🏠", "snowman": "⛄",
}  # fmt: skip
GROUNDS = ((250, 250, 250), (205, 225, 245), (222, 240, 214), (245, 230, 205), (60, 70, 90), (128, 128, 128))


def _phrases() -> Mapping[str, str]:
    return {name: with_article(name) for name in EMOJI}


@functools.cache
def _glyph(name: str) -> Image.Image:
    font = ImageFont.truetype(packaged_file(FONT, "fonts-noto-color-emoji"), PIXELS)
    square = Image.new("RGBA", (160, 160))
    ImageDraw.Draw(square).text((80, 80), EMOJI[name], font=font, anchor="mm", embedded_color=True)
    return square.crop(square.getbbox())


def _graded_ground(rng: random.Random) -> Image.Image:
    """Draw a ground that runs from one colour to another, or to the same."""
    upper = rng.choice(GROUNDS)
    lower = upper if rng.random() < 0.5 else rng.choice(GROUNDS)
    ramp = Image.linear_gradient("L").resize(CANVAS)
    return Image.composite(Image.new("RGB", CANVAS, lower), Image.new("RGB", CANVAS, upper), ramp)


EMOJI_SET = ThingSet("emoji", _phrases, _glyph, _graded_ground)
