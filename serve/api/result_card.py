"""Draws a shared result as one picture: the image with the boxes, the question, the merged answer, each model's."""

import bisect
import io
import json
from typing import Any

import PIL.Image
import PIL.ImageDraw
import PIL.ImageOps

from serve.media.drawing import MERGED, Layer, colour_of, draw_layers
from serve.media.lettering import Lettering

Json = dict[str, Any]
WIDE, EDGE, PICTURE_WIDE, MOST_HIGH = 1200, 36, 560, 1600
MAX_PLACES = 60
"""Boxes or points that are drawn, of all models together: placing their labels takes time."""
MAX_WORDS = 280
MAX_REPLIES = 6
INK, QUIET, GROUND = "#22252a", "#5b616a", "#f7f4ee"
FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf")
"""Fonts of its texts, each where the ones before lack a letter."""


def draw_card(picture: PIL.Image.Image, question: str, answer: Json) -> bytes:
    """Return the PNG. picture: at any size; boxes are in the pixels of `answer["image"]`.

    Raises ValueError or OverflowError for a place that no picture has.
    """
    small = PIL.ImageOps.contain(picture, (PICTURE_WIDE, MOST_HIGH // 2), PIL.Image.Resampling.LANCZOS)
    lettering = Lettering(FONTS)
    small = draw_layers(small, _layers(answer, small.width / answer["image"]["width"]), lettering)
    blocks = _blocks(question, answer)
    left, width = 2 * EDGE + PICTURE_WIDE, WIDE - 3 * EDGE - PICTURE_WIDE
    lines: list[tuple[str, str, int]] = []
    for text, colour, size in blocks:
        lines += [(line, colour, size) for line in _wrapped(_short(text), lettering, size, width)]
        lines.append(("", INK, 12))
    high = sum(round(1.35 * size) for _, _, size in lines)
    card = PIL.Image.new("RGB", (WIDE, min(MOST_HIGH, max(small.height, high) + 2 * EDGE + 24)), GROUND)
    card.paste(small, (EDGE + (PICTURE_WIDE - small.width) // 2, EDGE))
    pen, y = PIL.ImageDraw.Draw(card), EDGE
    for text, colour, size in lines:
        lettering.draw(pen, (left, y), text, size, colour)
        y += round(1.35 * size)
    foot = lettering.note() or "Diptych: one picture, every model, side by side"
    lettering.draw(pen, (EDGE, card.height - 30), foot, 15, QUIET)
    out = io.BytesIO()
    card.save(out, "PNG", optimize=True)
    return out.getvalue()


def _layers(answer: Json, scale: float) -> list[Layer]:
    replies = [_places(reply.get("result")) for reply in answer["replies"][:MAX_PLACES]]
    merged = _places(answer["merged"].get("result"))
    each = max(1, MAX_PLACES // (len(replies) + 1))

    def scaled(places: list[Json]) -> list[Json]:
        return [
            {"label": place["label"], "score": place.get("score") or 0.0}
            | {kind: [scale * edge for edge in place[kind]] for kind in ("box", "point") if kind in place}
            for place in places[:each]
        ]

    return [
        *(Layer(colour_of(at)[1], scaled(boxes)) for at, boxes in enumerate(replies)),
        Layer(MERGED, scaled(merged), bold=True),
    ]


def _places(result: Json | None) -> list[Json]:
    """Return the boxes or points of a result; none of one without."""
    return (result or {}).get("boxes") or (result or {}).get("points") or []


def _blocks(question: str, answer: Json) -> list[tuple[str, str, int]]:
    merged, replies = answer["merged"], answer["replies"]
    heading = f"{answer['task']}: {question}" if question else answer["task"]
    blocks = [(heading, INK, 26)]
    if merged.get("result"):
        agreement = f"merged by {merged['method'].replace('_', ' ')}, {merged['agreement']:.0%} agreement"
        blocks += [(agreement, QUIET, 15), (_words(merged["result"]), INK, 23)]
    elif merged.get("error"):
        blocks.append((merged["error"]["message"], INK, 23))
    for at, reply in enumerate(replies[:MAX_REPLIES]):
        drawn = bool(_places(reply.get("result")))
        name = f"{reply['model']}{f' ({colour_of(at)[0]})' if drawn else ''}, {reply['latency_ms'] / 1000:.2f} s"
        text = _words(reply["result"]) if reply.get("result") else (reply.get("error") or {}).get("message", "")
        blocks += [(name, QUIET, 15), (text, INK, 18)]
    if len(replies) > MAX_REPLIES:
        blocks.append((f"and {len(replies) - MAX_REPLIES} more", QUIET, 15))
    return blocks


def _words(result: Json) -> str:
    first = next(iter(result.values()), "")
    if isinstance(first, list):
        named = (item["label"] if isinstance(item, dict) and "label" in item else item for item in first)
        return ", ".join(map(str, named)) or "nothing found"
    return (json.dumps(first) if isinstance(first, dict) else str(first)) or "(nothing)"


def _short(text: str) -> str:
    """Return the beginning of a text, without line breaks: to wrap a word takes the square of its length."""
    text = " ".join(text[: 4 * MAX_WORDS].split())
    return text if len(text) <= MAX_WORDS else f"{text[:MAX_WORDS]}…"


def _wrapped(text: str, lettering: Lettering, size: int, width: int) -> list[str]:
    lines, line = [], ""
    for word in text.split(" "):
        while lettering.length(word, size) > width:  # an address, or a script without spaces
            cut = _fitting(word, lettering, size, width)
            lines += [line, word[:cut]] if line else [word[:cut]]
            line, word = "", word[cut:]
        longer = f"{line} {word}" if line else word
        if line and lettering.length(longer, size) > width:
            lines.append(line)
            line = word
        else:
            line = longer
    return [*lines, line]


def _fitting(word: str, lettering: Lettering, size: int, width: float) -> int:
    """Return how many letters of a word that is too wide fit; at least one."""

    def prefix_width(letters: int) -> float:
        return lettering.length(word[:letters], size)

    return max(1, bisect.bisect_right(range(1, len(word)), float(width), key=prefix_width))
