"""Scenes: a plain background, one to three coloured shapes and sometimes a word, drawn with PIL from a seed.

A scene holds the truth about its image, so that answers about it can be checked without a model. Nothing here needs
torch: the command line and the load test draw scenes too.
"""

import functools
import math
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 as fractions of the canvas."""

SHAPES = ("circle", "square", "triangle", "star", "cross")
COLORS = {
    "red": (220, 35, 40),
    "green": (30, 160, 65),
    "blue": (40, 85, 225),
    "yellow": (242, 208, 30),
    "purple": (140, 50, 175),
    "orange": (245, 130, 25),
}
# The grey is far from every colour above; black and white text reads on it.
BACKGROUNDS = {"white": (246, 246, 246), "gray": (146, 146, 146), "black": (16, 16, 16)}
WORDS = (
    "GO", "UP", "NO", "YES", "BUS", "TAXI", "STOP", "HELP", "OPEN", "EXIT", "SALE", "BOOK",
    "FIRE", "SLOW", "HOME", "CAFE", "PARK", "SHOP", "MILK", "HOTEL", "TRAIN", "WATER", "PIZZA", "MUSIC",
)  # fmt: skip
"""Every word that can be written in a scene; none names a shape or a colour. Numbers are 10 to 99."""

CANVASES = ((168, 224), (224, 224), (224, 168))
"""Width and height at scale 1."""


@dataclass(frozen=True)
class Shape:
    """A drawn shape. box: the bounds of its pixels."""

    kind: str
    color: str
    box: Box

    @property
    def name(self) -> str:
        return f"{self.color} {self.kind}"

    @property
    def center(self) -> tuple[float, float]:
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / 2, (y0 + y1) / 2


@dataclass(frozen=True)
class Scene:
    """The contents of an image. size: width and height at scale 1. shapes: from left to right. font: text size in
    pixels at scale 1."""

    seed: int
    size: tuple[int, int]
    background: str
    shapes: tuple[Shape, ...]
    text: str = ""
    text_box: Box | None = None
    font: int = 0


def scene(seed: int, text: bool | None = None) -> Scene:
    """Return the scene of a seed, the same on every machine. text: whether it has a word; by default 40 % have one."""
    rng = random.Random(f"scene {seed} {text}")
    while True:  # a draw that does not fit is rejected as a whole, so that no size or place is favoured
        sample = _sample(rng, seed, text)
        if sample is not None:
            return sample


def _sample(rng: random.Random, seed: int, text: bool | None) -> Scene | None:
    width, height = rng.choice(CANVASES)
    short = min(width, height)
    background = rng.choice(tuple(BACKGROUNDS))
    taken: list[Box] = []
    written, font, text_box = "", 0, None
    if text if text is not None else rng.random() < 0.4:
        written = rng.choice(WORDS) if rng.random() < 0.6 else str(rng.randint(10, 99))
        font = round(short * rng.uniform(0.26, 0.34))
        left, top, right, bottom = _font(font).getbbox(written, anchor="mm", stroke_width=_stroke(font))
        w, h = right - left, bottom - top
        if w > 0.94 * width:
            return None
        x, y = rng.uniform(2, width - 2 - w), rng.uniform(2, height - 2 - h)
        text_box = (x / width, y / height, (x + w) / width, (y + h) / height)
        taken.append((x, y, x + w, y + h))
    boxes: list[Box] = []
    gap = 0.02 * short
    for _ in range(rng.randint(1, 3)):
        side = short * rng.uniform(0.22, 0.38)
        for _ in range(20):
            x, y = rng.uniform(2, width - 2 - side), rng.uniform(2, height - 2 - side)
            box = (x, y, x + side, y + side)
            if all(
                box[2] + gap < b[0] or b[2] + gap < box[0] or box[3] + gap < b[1] or b[3] + gap < box[1] for b in taken
            ):
                break
        else:
            return None
        taken.append(box)
        boxes.append(box)
    boxes.sort(key=lambda b: b[0] + b[2])
    shapes = []
    for x0, y0, x1, y1 in boxes:
        kind, color = rng.choice(SHAPES), rng.choice(tuple(COLORS))
        points = corners(kind, (x0 / width, y0 / height, x1 / width, y1 / height))
        shapes.append(Shape(kind, color, _bounds(points)))
    return Scene(seed, (width, height), background, tuple(shapes), written, text_box, font)


def corners(kind: str, box: Box) -> list[tuple[float, float]]:
    """Return the corners of a shape that fits a box, in the box's units; two opposite ones for circle and square."""
    x0, y0, x1, y1 = box
    if kind in ("circle", "square"):
        return [(x0, y0), (x1, y1)]
    if kind == "triangle":
        points = [(0.5, 0.0), (1.0, 1.0), (0.0, 1.0)]
    elif kind == "cross":
        a, b = 0.33, 0.67
        points = [(a, 0), (b, 0), (b, a), (1, a), (1, b), (b, b), (b, 1), (a, 1), (a, b), (0, b), (0, a), (a, a)]
    else:  # star
        turns = [(math.pi * i / 5, 0.5 if i % 2 == 0 else 0.22) for i in range(10)]
        points = [(0.5 + r * math.sin(t), 0.5 - r * math.cos(t)) for t, r in turns]
    return [(x0 + (x1 - x0) * x, y0 + (y1 - y0) * y) for x, y in points]


def draw(scene: Scene, scale: float = 1.0) -> Image.Image:
    """Draw a scene in RGB at `scale` times its nominal size. The seed also varies each colour a little."""
    rng = random.Random(f"tint {scene.seed}")
    width, height = (round(side * scale) for side in scene.size)

    def tint(color: tuple[int, int, int], most: int) -> tuple[int, int, int]:
        red, green, blue = (min(255, max(0, part + rng.randint(-most, most))) for part in color)
        return red, green, blue

    picture = Image.new("RGB", (width, height), tint(BACKGROUNDS[scene.background], 9))
    pen = ImageDraw.Draw(picture)
    for shape in scene.shapes:
        paint(pen, shape, (width, height), tint(COLORS[shape.color], 10))
    if scene.text_box is not None:
        size = round(scene.font * scale)
        x0, y0, x1, y1 = scene.text_box
        at = ((x0 + x1) / 2 * width, (y0 + y1) / 2 * height)
        left, top, right, bottom = _font(size).getbbox(scene.text, anchor="mm", stroke_width=_stroke(size))
        ink = (255, 255, 255) if scene.background == "black" else (0, 0, 0)
        # Centre the drawn pixels: the font's own middle leaves room for letters that hang below the line.
        at = (at[0] - (left + right) / 2, at[1] - (top + bottom) / 2)
        pen.text(at, scene.text, fill=ink, font=_font(size), anchor="mm", stroke_width=_stroke(size), stroke_fill=ink)
    return picture


def paint(pen: ImageDraw.ImageDraw, shape: Shape, size: tuple[int, int], fill: tuple[int, int, int] | int) -> None:
    """Draw a shape. size: the image's width and height."""
    width, height = size
    points = [(x * width, y * height) for x, y in _fit_to_box(shape)]
    if shape.kind == "circle":
        pen.ellipse(points, fill=fill)
    elif shape.kind == "square":
        pen.rectangle(points, fill=fill)
    else:
        pen.polygon(points, fill=fill)


def _fit_to_box(shape: Shape) -> list[tuple[float, float]]:
    """Return corners whose bounds are the shape's box; a star does not fill the square that it is drawn in."""
    raw = corners(shape.kind, (0.0, 0.0, 1.0, 1.0))
    left, top, right, bottom = _bounds(raw)
    x0, y0, x1, y1 = shape.box
    return [(x0 + (x1 - x0) * (x - left) / (right - left), y0 + (y1 - y0) * (y - top) / (bottom - top)) for x, y in raw]


def _bounds(points: list[tuple[float, float]]) -> Box:
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


@functools.lru_cache(maxsize=256)
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font


def _stroke(size: int) -> int:
    # The built-in font is thin: without a stroke its letters vanish when the image is scaled down to 112 pixels.
    return max(1, round(size / 20))
