"""Lines of text in an image: their reading order, and the places of a phrase in them."""

import math
import statistics
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

Point = tuple[float, float]
Quad = tuple[Point, Point, Point, Point]
"""The corners of a line or a word: as it is read, from the upper left one clockwise. In pixels of the image."""
Box = tuple[float, float, float, float]
SPACELESS = "\u2e80"
"""The first character of the scripts that are written without spaces."""
TILT = math.radians(30)
"""Lines that are tilted more say nothing about how the whole page is."""


@dataclass(frozen=True)
class Unit:
    """The smallest part of a line whose place is known: a word, or a character. score: its probability, 0..1."""

    text: str
    score: float
    quad: Quad


@dataclass(frozen=True)
class TextLine:
    """A line of text. units: its parts, whose texts joined are its text without blanks; empty where not known."""

    text: str
    score: float
    quad: Quad
    units: Sequence[Unit] = field(default=())


@dataclass(frozen=True)
class PhraseBox:
    """A place of a phrase: a box around it, as x0, y0, x1, y1, and the probability that it was read rightly."""

    box: Box
    score: float


def rows(quads: Sequence[Quad]) -> list[list[int]]:
    """Return the lines' indices in reading order: rows from top to bottom, each from left to right.

    A page may be tilted: rows follow the median of its lines. Columns of text are not told apart.
    """
    tilts = [math.atan2(b[1] - a[1], b[0] - a[0]) for a, b, _, _ in quads]
    tilt = statistics.median([angle for angle in tilts if abs(angle) < TILT] or [0.0])
    sine, cosine = math.sin(-tilt), math.cos(-tilt)
    spans = []
    for index, quad in enumerate(quads):
        turned = [(x * cosine - y * sine, x * sine + y * cosine) for x, y in quad]
        ys = [y for _, y in turned]
        spans.append((min(ys), max(ys), min(x for x, _ in turned), index))
    found_rows: list[list[tuple[float, float, float, int]]] = []
    for span in sorted(spans):
        middle = (span[0] + span[1]) / 2
        row = found_rows[-1] if found_rows else None
        if row is not None and all(each[0] < middle < each[1] for each in row):
            row.append(span)
        else:
            found_rows.append([span])
    return [[index for _, _, _, index in sorted(row, key=lambda span: span[2])] for row in found_rows]


def places(line: TextLine, phrase: str) -> Iterator[PhraseBox]:
    """Yield each place where the line has a phrase as whole words; case, accents and blanks aside."""
    owners = _owners(line)
    letters = [(fold, at) for at, letter in enumerate(line.text) if not letter.isspace() for fold in _folded(letter)]
    text, wanted = "".join(fold for fold, _ in letters), "".join(_folded("".join(phrase.split())))
    start = text.find(wanted) if wanted else -1
    while start >= 0:
        end = start + len(wanted)
        first, last = letters[start][1], letters[end - 1][1]
        if not _within_word(line.text, first) and not _within_word(line.text, last + 1):
            units = sorted({owners[at] for at in range(first, last + 1) if at in owners})
            parts = [line.units[unit] for unit in units]
            corners = [corner for part in parts for corner in part.quad] or line.quad
            xs, ys = [x for x, _ in corners], [y for _, y in corners]
            score = min((part.score for part in parts), default=line.score)
            yield PhraseBox((min(xs), min(ys), max(xs), max(ys)), score)
            start = text.find(wanted, end)
        else:
            start = text.find(wanted, start + 1)


def _owners(line: TextLine) -> dict[int, int]:
    """Return the unit of each character of the line's text, by index; {} where units and text do not agree."""
    owners, at = dict[int, int](), 0
    for index, unit in enumerate(line.units):
        for letter in unit.text:
            if letter.isspace():
                continue
            while at < len(line.text) and line.text[at].isspace():
                at += 1
            if at == len(line.text) or line.text[at] != letter:
                return {}
            owners[at] = index
            at += 1
    return owners


def _within_word(text: str, at: int) -> bool:
    """Return whether a word goes on from the character before `at` to the one there."""
    if not 0 < at < len(text):
        return False
    before, after = text[at - 1], text[at]
    return before.isalnum() and after.isalnum() and max(before, after) < SPACELESS


def _folded(text: str) -> str:
    """Return the same text for one that differs in case, accents or width alone."""
    letters = unicodedata.normalize("NFKD", text.casefold())
    return "".join(letter for letter in letters if not unicodedata.combining(letter))
