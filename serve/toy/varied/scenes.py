"""Varied scenes: one to eight things and sometimes a word, on a plain, graded or noisy background, at any size.

Twelve colours, ten shapes, filled or outlined, overlapping now and then. A scene is drawn from a seed with Pillow and
holds the truth about its image, as in serve.toy.world, which it will replace once toys are trained on it.
"""

import functools
import importlib.util
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from serve.media.masks import Mask
from serve.toy.varied.names import FONT_FILES, GROUNDS, LARGEST_NUMBER, PALETTE, SHAPE_OTHERS, WRITTEN, Rgb
from serve.toy.world import BACKGROUNDS, COLORS, Box, Scene

BUILT_IN = ("aileron",)
SIDES = (48, 560)
"""The shortest short side and the longest long side, in pixels."""
COUNTS = {1: 13, 2: 18, 3: 20, 4: 17, 5: 12, 6: 8, 7: 6, 8: 6}
"""Numbers of things, and how often in a hundred scenes."""
LEAST_SEEN = 0.65
"""The least part of a thing that others leave to be seen."""
CONTRAST = 130
"""The least sum of differences in red, green and blue between neighbours."""


@dataclass(frozen=True)
class Thing:
    """A drawn shape. frame: the bounds of all of it; box: of what is seen. tone: its colour before small variation.
    style: `filled` or `outlined`."""

    kind: str
    color: str
    style: str
    frame: Box
    tone: Rgb
    box: Box

    @property
    def name(self) -> str:
        return f"{self.color} {self.kind}"

    @property
    def center(self) -> tuple[float, float]:
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / 2, (y0 + y1) / 2


@dataclass(frozen=True)
class Writing:
    """A written word or number. box: of its ink. size: of the font, in pixels of the scene."""

    text: str
    color: str
    tone: Rgb
    font: str
    size: int
    box: Box


@dataclass(frozen=True)
class VariedScene:
    """The contents of a picture. size: width and height in pixels. texture: `plain`, `graded` or `noisy`. grounds: the
    background's colour, and the one that it runs into. things: from left to right; order: from back to front, as
    indices of them."""

    seed: int
    size: tuple[int, int]
    background: str
    texture: str
    grounds: tuple[Rgb, Rgb]
    things: tuple[Thing, ...]
    order: tuple[int, ...]
    writing: Writing | None = None


def varied_scene(seed: int, *, writing: bool | None = None, fonts: Sequence[str] = BUILT_IN) -> VariedScene:
    """Return the scene of a seed, the same on every machine that has these fonts (names in FONT_FILES).

    writing: whether it has a word or number; by default 35 % have one.
    """
    rng = random.Random(f"varied {seed} {writing}")
    count = rng.choices(tuple(COUNTS), tuple(COUNTS.values()))[0]
    return _fitting(rng, seed, writing, fonts, count, overlapping=count > 1 and rng.random() < 0.3)


def written_scene(seed: int, fonts: Sequence[str] = BUILT_IN) -> VariedScene:
    """Return a scene of a word or number alone: quick to make, as reading takes many."""
    return _fitting(random.Random(f"written {seed}"), seed, True, fonts, count=0, overlapping=False)


def letter_starts(written: Writing) -> list[float]:
    """Return where each letter begins, from left to right, in fractions of the picture's width."""
    font, (left, _, right, _) = _font(written.font, written.size), written.box
    scale = (right - left) / font.getlength(written.text)
    return [left + scale * font.getlength(written.text[:index]) for index in range(len(written.text))]


def as_varied(scene: Scene) -> VariedScene:
    """Return a scene of the first world as a varied one, so that the same can be asked about it."""
    ground = BACKGROUNDS[scene.background]
    things = tuple(
        Thing(shape.kind, shape.color, "filled", shape.box, COLORS[shape.color], shape.box) for shape in scene.shapes
    )
    written = None
    if scene.text_box is not None:
        color, tone = ("white", (255, 255, 255)) if scene.background == "black" else ("black", (0, 0, 0))
        written = Writing(scene.text, color, tone, BUILT_IN[0], scene.font, scene.text_box)
    order = tuple(range(len(things)))
    return VariedScene(scene.seed, scene.size, scene.background, "plain", (ground, ground), things, order, written)


def _fitting(
    rng: random.Random, seed: int, writing: bool | None, fonts: Sequence[str], count: int, overlapping: bool
) -> VariedScene:
    while True:  # a draw that does not fit is rejected as a whole, so that no size or place is favoured
        scene = _sample(rng, seed, writing, fonts, count, overlapping)
        if scene is not None:
            return scene


def _sample(
    rng: random.Random, seed: int, writing: bool | None, fonts: Sequence[str], count: int, overlapping: bool
) -> VariedScene | None:
    width, height = size = _size(rng)
    background = rng.choice(("white", "white", "black", "gray", *GROUNDS))
    first = rng.choice(GROUNDS[background])
    texture = rng.choices(("plain", "graded", "noisy"), (60, 22, 18))[0]
    step = rng.choice((-34, -24, 24, 34)) if texture == "graded" else 0
    if not 0 <= sum(first) + 3 * step <= 3 * 255:  # white would run into white
        step = -step
    red, green, blue = (min(255, max(0, part + step)) for part in first)
    grounds = first, (red, green, blue)
    written: Writing | None = None
    taken: list[Box] = []
    if writing if writing is not None else rng.random() < 0.35:
        written = _write(rng, size, grounds, fonts)
        if written is None:
            return None
        taken.append(_pixels(written.box, size))
    things = _place(rng, size, grounds, taken, count, overlapping)
    if things is None:
        return None
    order = list(range(len(things)))
    rng.shuffle(order)
    scene = VariedScene(seed, size, background, texture, grounds, tuple(things), tuple(order), written)
    seen = _with_seen_boxes(scene)
    if overlapping and seen is not None and all(thing.box == thing.frame for thing in seen.things):
        return None
    return seen


def _size(rng: random.Random) -> tuple[int, int]:
    ratio = math.exp(rng.uniform(-0.5, 0.5) if rng.random() < 0.85 else rng.uniform(-1.1, 1.1))
    least, most = SIDES
    short = round(math.exp(rng.uniform(math.log(least), math.log(most / max(ratio, 1 / ratio)))))
    long = round(short * max(ratio, 1 / ratio))
    return (long, short) if ratio > 1 else (short, long)


def _place(
    rng: random.Random,
    size: tuple[int, int],
    grounds: tuple[Rgb, Rgb],
    taken: Sequence[Box],
    count: int,
    overlapping: bool,
) -> list[Thing] | None:
    """Return things from left to right that fit beside each other and the writing, or None. overlapping: whether they
    may hide parts of each other."""
    width, height = size
    mean, long, short = math.sqrt(width * height), max(size), min(size)
    least = max(0.13 * mean, 0.085 * long, 11.0)
    most = max(least, min(0.8 * short, mean * min(0.45, 0.8 / math.sqrt(max(1, count)))))
    few = (
        rng.sample(tuple(PALETTE), rng.randint(2, len(PALETTE))),
        rng.sample(tuple(SHAPE_OTHERS), rng.randint(2, len(SHAPE_OTHERS))),
    )
    things: list[Thing] = []
    for _ in range(count):
        kind = rng.choice(few[1])
        color, tone = _ink(rng, grounds, few[0])
        side = rng.uniform(least, most)
        style = "outlined" if side > max(0.18 * mean, 20) and rng.random() < 0.3 else "filled"
        wide, high = _aspect(rng, kind, side)
        for _ in range(20):
            if wide + 4 > width or high + 4 > height:
                return None
            x, y = rng.uniform(2, width - 2 - wide), rng.uniform(2, height - 2 - high)
            if overlapping and things and rng.random() < 0.5:
                near = _pixels(rng.choice(things).frame, size)
                x = min(max(2, rng.uniform(near[0] - wide, near[2])), width - 2 - wide)
                y = min(max(2, rng.uniform(near[1] - high, near[3])), height - 2 - high)
            frame = (x, y, x + wide, y + high)
            if all(_apart(frame, other, 0.02 * short) for other in taken) and all(
                _apart(frame, _pixels(other.frame, size), 0.02 * short)
                or (overlapping and _may_cover(frame, style, color, tone, other, size))
                for other in things
            ):
                break
        else:
            return None
        things.append(Thing(kind, color, style, _fractions(frame, size), tone, _fractions(frame, size)))
    return sorted(things, key=lambda thing: thing.center[0])


def _aspect(rng: random.Random, kind: str, side: float) -> tuple[float, float]:
    if kind in ("rectangle", "ellipse"):
        wide, high = side, side / rng.uniform(1.6, 2.2)
        return (wide, high) if rng.random() < 0.6 else (high, wide)
    left, top, right, bottom = bounds(outline(kind))
    return side * (right - left), side * (bottom - top)


def _ink(rng: random.Random, grounds: tuple[Rgb, Rgb], among: Sequence[str] = tuple(PALETTE)) -> tuple[str, Rgb]:
    """Return a colour and a tone of it that stand out from the background; of `among` where one of these does."""
    clear = _clear_tones(grounds)
    color = rng.choice(sorted(clear.keys() & set(among)) or sorted(clear))
    return color, rng.choice(clear[color])


@functools.lru_cache(maxsize=4096)
def _clear_tones(grounds: tuple[Rgb, Rgb]) -> dict[str, list[Rgb]]:
    """Return the tones of each colour that stand out from the background; there are some."""
    clear = {
        name: [tone for tone in hue.tones if all(_difference(tone, ground) > CONTRAST for ground in grounds)]
        for name, hue in PALETTE.items()
    }
    return {name: tones for name, tones in clear.items() if tones}


def _difference(a: Rgb, b: Rgb) -> int:
    return sum(abs(p - q) for p, q in zip(a, b, strict=True))


def _apart(a: Sequence[float], b: Sequence[float], gap: float) -> bool:
    return a[2] + gap < b[0] or b[2] + gap < a[0] or a[3] + gap < b[1] or b[3] + gap < a[1]


def _may_cover(frame: Sequence[float], style: str, color: str, tone: Rgb, other: Thing, size: tuple[int, int]) -> bool:
    """Return whether two things may overlap: filled, of clearly different colours, and by a part of the smaller."""
    if style != "filled" or other.style != "filled" or color == other.color or _difference(tone, other.tone) < CONTRAST:
        return False
    b = _pixels(other.frame, size)
    both = (min(frame[2], b[2]) - max(frame[0], b[0])) * (min(frame[3], b[3]) - max(frame[1], b[1]))
    smaller = min((f[2] - f[0]) * (f[3] - f[1]) for f in (frame, b))
    return both < 0.3 * smaller


def _write(rng: random.Random, size: tuple[int, int], grounds: tuple[Rgb, Rgb], fonts: Sequence[str]) -> Writing | None:
    width, height = size
    if rng.random() < 0.62:
        word = rng.choice(WRITTEN)
        text = word if rng.random() < 0.65 else word.capitalize()
    else:
        text = str(rng.randint(0, rng.choice((9, 99, 99, LARGEST_NUMBER))))
    color, tone = _ink(rng, grounds, ("black", "white", *PALETTE) if rng.random() < 0.5 else ("black", "white"))
    font = rng.choice(tuple(fonts))
    points = round(max(0.17 * math.sqrt(width * height), 0.11 * max(size), 14) * rng.uniform(1.0, 1.8))
    left, top, right, bottom = _font(font, points).getbbox(text, anchor="mm", stroke_width=_stroke(font, points))
    w, h = right - left, bottom - top
    if w > 0.96 * width - 4 or h > 0.9 * height - 4:
        return None
    x, y = rng.uniform(2, width - 2 - w), rng.uniform(2, height - 2 - h)
    return Writing(text, color, tone, font, points, _fractions((x, y, x + w, y + h), size))


def _with_seen_boxes(scene: VariedScene) -> VariedScene | None:
    """Return the scene with the boxes of what is seen of each thing, or None where too little is seen of one."""
    frames = [_pixels(thing.frame, scene.size) for thing in scene.things]
    crossed = {
        index
        for index, a in enumerate(frames)
        for other, b in enumerate(frames)
        if index != other and not _apart(a, b, 0)
    }
    if not crossed:
        return scene
    scale = 400 / max(scene.size)
    size = round(scene.size[0] * scale), round(scene.size[1] * scale)
    owners = owner_map(scene, size)
    things = list(scene.things)
    for index in crossed:
        seen, alone = owners == index + 1, silhouette(things[index], size)
        if seen.sum() < LEAST_SEEN * alone.sum():
            return None
        xs, ys = (np.flatnonzero(seen.any(axis)) for axis in (0, 1))
        x0, y0, x1, y1 = things[index].frame
        whole = [np.flatnonzero(alone.any(axis)) for axis in (0, 1)]
        # An edge that nothing hides keeps its exact place.
        box: Box = (
            x0 if xs[0] == whole[0][0] else float(xs[0] / size[0]),
            y0 if ys[0] == whole[1][0] else float(ys[0] / size[1]),
            x1 if xs[-1] == whole[0][-1] else float((xs[-1] + 1) / size[0]),
            y1 if ys[-1] == whole[1][-1] else float((ys[-1] + 1) / size[1]),
        )
        things[index] = replace(things[index], box=box)
    return replace(scene, things=tuple(things))


def outline(kind: str) -> list[tuple[float, float]]:
    """Return the corners of a shape in the unit square; two opposite ones for those that a box defines."""
    if kind in ("circle", "ellipse", "square", "rectangle"):
        return [(0.0, 0.0), (1.0, 1.0)]
    if kind == "triangle":
        return [(0.5, 0.0), (1.0, 0.9), (0.0, 0.9)]
    if kind == "diamond":
        return [(0.5, 0.0), (0.88, 0.5), (0.5, 1.0), (0.12, 0.5)]
    if kind == "cross":
        a, b = 0.33, 0.67
        return [(a, 0), (b, 0), (b, a), (1, a), (1, b), (b, b), (b, 1), (a, 1), (a, b), (0, b), (0, a), (a, a)]
    if kind == "star":
        turns = [(math.pi * i / 5, 0.5 if i % 2 == 0 else 0.22) for i in range(10)]
        return [(0.5 + r * math.sin(t), 0.5 - r * math.cos(t)) for t, r in turns]
    if kind == "heart":
        return [
            (
                0.5 + math.sin(t) ** 3 / 2,
                0.5 - (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 32,
            )
            for t in (2 * math.pi * i / 40 for i in range(40))
        ]
    if kind == "moon":  # a disc without the part that a second disc, with its middle at 0.82, covers
        outer = [math.radians(angle) for angle in range(55, 306, 10)]
        inner = [math.radians(angle) for angle in range(260, 99, -10)]
        edge = [(0.5 + 0.5 * math.cos(t), 0.5 - 0.5 * math.sin(t)) for t in outer]
        return [*edge, *((0.82 + 0.411 * math.cos(t), 0.5 - 0.411 * math.sin(t)) for t in inner)]
    raise ValueError(f"unknown shape {kind!r}; known: {', '.join(SHAPE_OTHERS)}")


def bounds(points: Sequence[tuple[float, float]]) -> Box:
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def render(scene: VariedScene, scale: float = 1.0) -> Image.Image:
    """Draw a scene in RGB at `scale` times its size."""
    size = round(scene.size[0] * scale), round(scene.size[1] * scale)
    picture = _ground(scene, size)
    pen = ImageDraw.Draw(picture)
    rng = random.Random(f"tones {scene.seed}")
    inks = [_varied(thing.tone, rng) for thing in scene.things]
    for index in scene.order:
        thing = scene.things[index]
        draw_thing(pen, thing, size, inks[index])
    if scene.writing is not None:
        written = scene.writing
        points = max(1, round(written.size * scale))
        font, stroke = _font(written.font, points), _stroke(written.font, points)
        left, top, right, bottom = font.getbbox(written.text, anchor="mm", stroke_width=stroke)
        x0, y0, x1, y1 = _pixels(written.box, size)
        at = ((x0 + x1 - left - right) / 2, (y0 + y1 - top - bottom) / 2)
        ink = written.tone
        pen.text(at, written.text, fill=ink, font=font, anchor="mm", stroke_width=stroke, stroke_fill=ink)
    return picture


def _varied(tone: Rgb, rng: random.Random) -> Rgb:
    red, green, blue = (min(255, max(0, part + rng.randint(-9, 9))) for part in tone)
    return red, green, blue


def _ground(scene: VariedScene, size: tuple[int, int]) -> Image.Image:
    first, last = scene.grounds
    if scene.texture == "plain":
        return Image.new("RGB", size, first)
    rng = np.random.default_rng(scene.seed)
    if scene.texture == "noisy":
        grain = Image.fromarray(rng.integers(0, 256, (size[1], size[0]), np.uint8))
        low, high = (Image.new("RGB", size, tuple(max(0, part + by) for part in first)) for by in (-16, 16))
        return Image.composite(high, low, grain)
    turn = rng.integers(4)
    ramp = Image.linear_gradient("L").rotate(90 * int(turn)).resize(size)
    return Image.composite(Image.new("RGB", size, last), Image.new("RGB", size, first), ramp)


def draw_thing(pen: ImageDraw.ImageDraw, thing: Thing, size: tuple[int, int], fill: Rgb | int) -> None:
    """Draw a thing as it looks. size: the picture's width and height."""
    _fill(pen, thing, size, fill if thing.style == "filled" else None, fill)


def silhouette(thing: Thing, size: tuple[int, int]) -> Mask:
    """Return the pixels of a thing, bool [height, width], as if nothing hid it. An outlined thing has its inside too.
    size: width, height."""
    canvas = Image.new("L", size)
    _fill(ImageDraw.Draw(canvas), thing, size, 255, None)
    return np.asarray(canvas) > 0


def owner_map(scene: VariedScene, size: tuple[int, int]) -> np.ndarray:
    """Return which thing is seen at each pixel, uint8 [height, width]: its index plus 1, 0 for none."""
    canvas = Image.new("L", size)
    pen = ImageDraw.Draw(canvas)
    for index in scene.order:
        _fill(pen, scene.things[index], size, index + 1, None)
    return np.asarray(canvas)


def seen_mask(scene: VariedScene, index: int, size: tuple[int, int]) -> Mask:
    """Return the pixels of a thing that can be seen, bool [height, width]; those inside an outline are its own."""
    seen: Mask = owner_map(scene, size) == index + 1
    return seen


def _fill(
    pen: ImageDraw.ImageDraw, thing: Thing, size: tuple[int, int], fill: Rgb | int | None, line: Rgb | int | None
) -> None:
    """Draw a thing filled with `fill` and, in `line`, its outline inside its frame."""
    x0, y0, x1, y1 = _pixels(thing.frame, size)
    thick = 0 if line is None or fill is not None else max(2, round(0.1 * min(x1 - x0, y1 - y0)))
    corners = outline(thing.kind)
    left, top, right, bottom = bounds(corners)
    points = [
        (x0 + (x1 - x0) * (x - left) / (right - left), y0 + (y1 - y0) * (y - top) / (bottom - top)) for x, y in corners
    ]
    if thing.kind in ("circle", "ellipse"):
        pen.ellipse(points, fill=fill, outline=line if thick else None, width=thick)
    elif thing.kind in ("square", "rectangle"):
        pen.rectangle(points, fill=fill, outline=line if thick else None, width=thick)
    elif not thick:
        pen.polygon(points, fill=fill)
    else:
        pen.polygon(points, outline=line, width=thick)


def _pixels(box: Box, size: tuple[int, int]) -> Box:
    return box[0] * size[0], box[1] * size[1], box[2] * size[0], box[3] * size[1]


def _fractions(box: Box, size: tuple[int, int]) -> Box:
    return box[0] / size[0], box[1] / size[1], box[2] / size[0], box[3] / size[1]


@functools.cache
def installed_fonts() -> tuple[str, ...]:
    """Return the names of the fonts that this machine has."""
    return tuple(name for name in FONT_FILES if name in BUILT_IN or _font_path(name) is not None)


def _font_path(name: str) -> Path | None:
    package = importlib.util.find_spec("matplotlib")
    if package is None or package.origin is None:
        return None
    path = Path(package.origin).parent / "mpl-data" / "fonts" / "ttf" / str(FONT_FILES[name])
    return path if path.is_file() else None


@functools.lru_cache(maxsize=512)
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """Raises ValueError for a font that this machine lacks."""
    if name in BUILT_IN:
        font = ImageFont.load_default(size)
        assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
        return font
    path = _font_path(name)
    if path is None:
        raise ValueError(f"The font {name!r} is not here: install matplotlib, which ships {FONT_FILES[name]}.")
    return ImageFont.truetype(path, size)


def _stroke(name: str, size: int) -> int:
    # The built-in font is thin: without a stroke its letters vanish when the picture is made small.
    return max(1, round(size / 20)) if name in BUILT_IN else 0
