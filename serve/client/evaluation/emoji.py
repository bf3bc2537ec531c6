"""Emoji as a labelled set: things that nobody here drew, with exact boxes and masks, on plain and graded grounds.

They come from Noto Color Emoji (SIL Open Font Licence 1.1): apt-get install fonts-noto-color-emoji.
"""

import functools
import io
import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from serve.client.evaluation.items import Item, Json
from serve.client.http_client import Failure
from serve.media import masks
from serve.tasks import TASKS
from serve.toy.varied.names import enumerated, plural_name, with_article

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
PIXELS = 109
"""The only size that the font has."""
CANVAS = (640, 480)
SIDES = (90, 200)
"""The least and the greatest side of a thing, in pixels."""
TASK_NAMES = ("vqa", "caption", "detect", "segment")
EMOJI = {
    "dog": "🐕", "cat": "🐈", "horse": "🐎", "cow": "🐄", "pig": "🐖", "elephant": "🐘", "penguin": "🐧", "owl": "🦉",
    "snail": "🐌", "butterfly": "🦋", "whale": "🐳", "turtle": "🐢", "apple": "🍎", "banana": "🍌", "strawberry": "🍓",
    "pineapple": "🍍", "carrot": "🥕", "hamburger": "🍔", "pizza": "🍕", "tree": "🌳", "cactus": "🌵",
    "sunflower": "🌻", "umbrella": "☂", "car": "🚗", "bus": "🚌", "bicycle": "🚲", "airplane": "✈", "rocket": "🚀",
    "sailboat": "⛵", "guitar": "🎸", "trumpet": "🎺", "key": "🔑", "book": "📕", "clock": "⏰",
    "camera": "📷", "hat": "🎩", "shoe": "👟", "house": "🏠", "snowman": "⛄",
}  # fmt: skip
GROUNDS = ((250, 250, 250), (205, 225, 245), (222, 240, 214), (245, 230, 205), (60, 70, 90), (128, 128, 128))


@dataclass(frozen=True)
class Emoji:
    """A thing in a picture. at: left and top; side: its longer one; all in pixels."""

    name: str
    at: tuple[int, int]
    side: int


@dataclass(frozen=True)
class EmojiScene:
    """A row of one to five things, from left to right, on a ground that runs from one colour to another."""

    seed: int
    things: tuple[Emoji, ...]
    grounds: tuple[tuple[int, int, int], tuple[int, int, int]]


def emoji_scene(seed: int) -> EmojiScene:
    rng = random.Random(f"emoji {seed}")
    few = rng.sample(tuple(EMOJI), 3)  # of three kinds, so that some occur more than once
    things: list[Emoji] = []
    for _ in range(rng.randint(1, 5)):
        side = rng.randint(*SIDES)
        for _ in range(30):
            x, y = rng.randrange(CANVAS[0] - side), rng.randrange(CANVAS[1] - side)
            if all(
                x + side < other.at[0] or other.at[0] + other.side < x
                or y + side < other.at[1] or other.at[1] + other.side < y
                for other in things
            ):  # fmt: skip
                things.append(Emoji(rng.choice(few), (x, y), side))
                break
    ground = rng.choice(GROUNDS)
    grounds = ground, (ground if rng.random() < 0.5 else rng.choice(GROUNDS))
    return EmojiScene(seed, tuple(sorted(things, key=lambda thing: thing.at[0])), grounds)


def emoji_picture(scene: EmojiScene) -> tuple[Image.Image, list[masks.Mask]]:
    """Draw a scene; return it with the pixels of each thing, bool [height, width]: those at least half opaque."""
    ramp = Image.linear_gradient("L").resize(CANVAS)
    picture = Image.composite(
        Image.new("RGB", CANVAS, scene.grounds[1]), Image.new("RGB", CANVAS, scene.grounds[0]), ramp
    )
    outlines: list[masks.Mask] = []
    for thing in scene.things:
        glyph = ImageOps.contain(_glyph(thing.name), (thing.side, thing.side), Image.Resampling.LANCZOS)
        layer = Image.new("RGBA", CANVAS)
        layer.paste(glyph, thing.at)
        picture.paste(layer, mask=layer.getchannel("A"))
        outlines.append(np.asarray(layer.getchannel("A")) >= 128)
    return picture, outlines


@functools.cache
def _glyph(name: str) -> Image.Image:
    """Return an emoji without the space around it, RGBA. Raises Failure where the font is missing."""
    if not FONT.is_file():
        raise Failure(f"{FONT} is not there: apt-get install fonts-noto-color-emoji.")
    font = ImageFont.truetype(FONT, PIXELS)
    square = Image.new("RGBA", (160, 160))
    ImageDraw.Draw(square).text((80, 80), EMOJI[name], font=font, anchor="mm", embedded_color=True)
    return square.crop(square.getbbox())


def emoji_items(task: str, count: int, seed: int) -> Iterator[Item]:
    """Yield a question of a task about each of `count` scenes; the same ones for the same seed."""
    for at in range(seed, seed + count):
        scene = emoji_scene(at)
        fields, truth = _question(task, scene, random.Random(f"emoji {task} {at}"))
        yield Item(f"emoji/{task}/{at}", f"emoji/{at}", task, fields, truth, functools.partial(_png, scene))


def all_emoji_items(names: Collection[str], count: int, seed: int) -> list[Item]:
    """Return the items of these tasks, task by task, `count` of each."""
    return [item for task in TASKS if task in names and task in TASK_NAMES for item in emoji_items(task, count, seed)]


def _question(task: str, scene: EmojiScene, rng: random.Random) -> tuple[Json, Json]:
    names = [thing.name for thing in scene.things]
    if task == "caption":
        return {}, {"captions": [enumerated([with_article(name) for name in names])]}
    name = rng.choice(names) if rng.random() < 0.6 else rng.choice(tuple(EMOJI))
    if task == "vqa":
        if rng.random() < 0.5:
            return {"question": f"Is there {with_article(name)}?"}, {"answers": ["yes" if name in names else "no"]}
        return {"question": f"How many {plural_name(name)} are there?"}, {"answers": [str(names.count(name))]}
    _, outlines = emoji_picture(scene)
    boxes: list[Json] = []
    for thing, mask in zip(scene.things, outlines, strict=True):
        rows, columns = np.nonzero(mask)
        bounds = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        box: Json = {"label": thing.name, "box": [float(edge) for edge in bounds]}
        boxes.append(box | ({"mask": masks.encode(mask).model_dump()} if task == "segment" else {}))
    return {"labels": list(dict.fromkeys(names))}, {"boxes": boxes}


def _png(scene: EmojiScene) -> bytes:
    out = io.BytesIO()
    emoji_picture(scene)[0].save(out, "PNG", compress_level=1)
    return out.getvalue()
