"""Boxes, masks and points drawn into an image: a colour for each model, the merged ones bold and on top."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageColor
import PIL.ImageDraw

from serve.media.lettering import Lettering
from serve.media.masks import Mask, Rle, Window, decode_in

Rectangle = tuple[float, float, float, float]
Item = Mapping[str, Any]
"""{"label", "box": [x0, y0, x1, y1], "score"} and maybe "mask", or "point": [x, y], as the server sends it."""

# Distinct for colour-blind people too (Okabe and Ito, 2008). Red is kept for merged boxes.
COLOURS = {
    "blue": "#0072b2",
    "orange": "#e69f00",
    "green": "#009e73",
    "purple": "#cc79a7",
    "sky blue": "#56b4e9",
    "yellow": "#f0e442",
}
MERGED = "#d5001c"
AROUND = 12  # pixels from a point to its label
VEIL, BOLD_VEIL = 64, 112  # opacity of a mask, of 255


@dataclass(frozen=True)
class Layer:
    """The boxes of one model, with masks if there are any, or its points, or the merged ones (bold)."""

    colour: str
    items: Sequence[Item]
    bold: bool = False


def colour_of(column: int) -> tuple[str, str]:
    """Return the name and the hex value of a column's colour."""
    return list(COLOURS.items())[column % len(COLOURS)]


def draw_layers(
    picture: PIL.Image.Image, layers: Sequence[Layer], lettering: Lettering | None = None
) -> PIL.Image.Image:
    """Return a copy of the image with every layer's boxes, masks and points, later layers over earlier ones.

    lettering: draws the labels, and tells which letters have no font.

    Raises ValueError for a mask that is malformed or has another size than the image.
    """
    drawn, lettering = picture.convert("RGB"), lettering or Lettering()
    pen = PIL.ImageDraw.Draw(drawn)
    thin = max(1, round(min(drawn.size) / 200))
    for layer in layers:
        for item in layer.items:
            if item.get("mask") is not None:
                _veil(drawn, item, layer, thin)
        for item in layer.items:
            if "point" in item:
                _dot(pen, item["point"], layer, thin)
            else:
                _frame(pen, item["box"], layer, thin, drawn.size)
    size = max(12, round(min(drawn.size) / 45))
    for layer, item, place in reversed(_places(lettering, size, layers, drawn.size)):
        pen.rectangle(place, fill=layer.colour)
        lettering.draw(pen, (place[0] + thin, place[1]), _label(item), size, _ink(layer.colour))
    return drawn


def _frame(pen: PIL.ImageDraw.ImageDraw, box: Rectangle, layer: Layer, thin: int, size: tuple[int, int]) -> None:
    """Draw a box. A model's frame lies on its edge, a merged one around it, so that equal boxes stay visible."""
    grow = 2 * thin if layer.bold else 0
    left, top = max(0, round(box[0]) - grow), max(0, round(box[1]) - grow)
    right, bottom = min(size[0], round(box[2]) + grow) - 1, min(size[1], round(box[3]) + grow) - 1
    left, top = min(left, size[0] - 1), min(top, size[1] - 1)
    pen.rectangle((left, top, max(left, right), max(top, bottom)), outline=layer.colour, width=grow or thin)


def _dot(pen: PIL.ImageDraw.ImageDraw, point: tuple[float, float], layer: Layer, thin: int) -> None:
    """Draw a point as a disc with a white edge. A merged one is a ring around those of its models."""
    x, y = point
    radius = (5 if layer.bold else 3) * thin
    around = (x - radius, y - radius, x + radius, y + radius)
    if layer.bold:
        pen.ellipse(around, outline=layer.colour, width=2 * thin)
    else:
        pen.ellipse(around, fill=layer.colour, outline="white", width=max(1, thin // 2))


def _veil(drawn: PIL.Image.Image, item: Item, layer: Layer, thin: int) -> None:
    """Draw a mask in its layer's colour, transparent but for its edge."""
    rle = Rle.model_validate(item["mask"])
    if rle.size != (drawn.height, drawn.width):
        raise ValueError(f"a mask of {rle.size[1]} x {rle.size[0]} pixels is not of this picture")
    window = Window.around(item["box"], drawn.width, drawn.height)
    mask = decode_in(rle, window)
    if not mask.size:
        return
    veil = np.where(mask, BOLD_VEIL if layer.bold else VEIL, 0)
    veil[mask & ~_shrink(mask, thin * (2 if layer.bold else 1))] = 255
    ink = PIL.Image.new("RGB", (mask.shape[1], mask.shape[0]), layer.colour)
    drawn.paste(ink, (window.left, window.top), PIL.Image.fromarray(veil.astype(np.uint8)))


def _shrink(mask: Mask, pixels: int) -> Mask:
    """Return the mask without its outermost pixels, to a depth of `pixels`."""
    for _ in range(pixels):
        wide = np.pad(mask, 1)
        mask = mask & wide[:-2, 1:-1] & wide[2:, 1:-1] & wide[1:-1, :-2] & wide[1:-1, 2:]
    return mask


def _places(
    lettering: Lettering, size: int, layers: Sequence[Layer], within: tuple[int, int]
) -> list[tuple[Layer, Item, Rectangle]]:
    """Place the labels, merged ones first, without overlap while there is room beside the box.

    size: of the letters, in pixels. Returns (layer, item, rectangle) of each.
    """
    placed: list[tuple[Layer, Item, Rectangle]] = []
    for layer in reversed(layers):
        for item in layer.items:
            width, height = lettering.box(_label(item), size)
            options = _options(_edges(item), width + height / 3, height * 1.3, within)
            free = (place for place in options if not any(_overlap(place, other[2]) for other in placed))
            placed.append((layer, item, next(free, options[0])))
    return placed


def _edges(item: Item) -> Rectangle:
    """Return the edges of what is drawn, about: a point has some around it."""
    if "point" not in item:
        x0, y0, x1, y1 = item["box"]
        return (x0, y0, x1, y1)
    x, y = item["point"]
    return (x - AROUND, y - AROUND, x + AROUND, y + AROUND)


def _options(box: Rectangle, width: float, height: float, size: tuple[int, int]) -> list[Rectangle]:
    """Return possible rectangles of a label, best first: above, below and inside the box, then lower."""
    x0, y0, x1, y1 = box
    tops = [y0 - height, y1, y0, y1 - height, *(y0 + height * step for step in range(1, 12))]
    corners = [(x, y) for y in tops for x in (x0, x1 - width)]
    kept = [(max(0.0, min(x, size[0] - width)), max(0.0, min(y, size[1] - height))) for x, y in corners]
    return [(x, y, x + width, y + height) for x, y in kept]


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _label(item: Item) -> str:
    label = " ".join(str(item["label"]).split())
    return f"{label[:39] + '…' if len(label) > 40 else label} {item['score']:.2f}"


def _ink(colour: str) -> str:
    """Return black or white, whichever contrasts more with the colour."""
    red, green, blue = PIL.ImageColor.getrgb(colour)[:3]
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"
