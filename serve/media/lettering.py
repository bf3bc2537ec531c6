"""Draws texts in any script for which this machine has a font, and tells which letters have none."""

import functools
import subprocess
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

USUAL = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "LiberationSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKsc-Regular.otf",
    "wqy-zenhei.ttc",
    "wqy-microhei.ttc",
    "DroidSansFallbackFull.ttf",
    "NotoSansArabic-Regular.ttf",
    "NotoNaskhArabic-Regular.ttf",
    "NotoSansHebrew-Regular.ttf",
    "NotoSansDevanagari-Regular.ttf",
    "NotoSansThai-Regular.ttf",
    "unifont.otf",
    "unifont.ttf",
)
"""Files that Pillow looks for in the folders of fonts, in this order, before fontconfig is asked."""
SEARCHES = 16
"""Letters for which one Lettering asks fontconfig, at most: each takes some 20 ms, and clients choose the letters."""
SEARCH_S = 5
ABSENT = "\N{WHITE SQUARE}"
"""Stands for a letter that no font has."""
Face = tuple[str, int]
"""A font's file and its place in it; a file's name alone is looked for in the folders of fonts."""
BUILT_IN: Face = ("", 0)
"""The font that Pillow brings along, which has Latin letters."""


class Lettering:
    """Draws texts, each letter in the first font that has it.

    first: files of fonts to try before Pillow's own and the others. missing: letters that were drawn as ABSENT.
    """

    def __init__(self, first: Sequence[str] = ()) -> None:
        self.missing: set[str] = set()
        self._faces: list[Face] = [*((name, 0) for name in first), BUILT_IN, *((name, 0) for name in USUAL)]
        self._searches = SEARCHES

    def note(self) -> str:
        """Return a sentence about the letters that could not be drawn; an empty text where there were none."""
        if not self.missing:
            return ""
        scripts = sorted({_script(letter) for letter in self.missing})
        return f"{ABSENT}: no font of this machine has it ({', '.join(scripts[:4])}{', …' * (len(scripts) > 4)})."

    def length(self, text: str, size: int) -> float:
        """Return the width of a text in pixels."""
        return sum(float(_font(face, size).getlength(part)) for part, face in self._runs(text))

    def box(self, text: str, size: int) -> tuple[float, float]:
        """Return width and height that a text takes, from the top of its line."""
        runs = list(self._runs(text))
        return self.length(text, size), max((_font(face, size).getbbox(part)[3] for part, face in runs), default=0)

    def draw(self, pen: PIL.ImageDraw.ImageDraw, place: tuple[float, float], text: str, size: int, ink: str) -> None:
        x, y = place
        runs = list(self._runs(text))
        base = max((_font(face, size).getmetrics()[0] for _, face in runs), default=0)  # all on one line
        for part, face in runs:
            font = _font(face, size)
            pen.text((x, y + base), part, fill=ink, font=font, anchor="ls")
            x += float(font.getlength(part))

    def _runs(self, text: str) -> Iterator[tuple[str, Face]]:
        """Yield pieces of a text, each with a font that has all its letters."""
        part, current = "", None
        for letter in text:
            joins = letter.isspace() or unicodedata.combining(letter) or unicodedata.category(letter) in ("Cf", "Mn")
            face = current if joins and current is not None else self._face(letter)
            if face is None:
                self.missing.add(letter)
                letter, face = ABSENT, self._face(ABSENT) or BUILT_IN
            if part and face != current:
                assert current is not None
                yield part, current
                part = ""
            part, current = part + letter, face
        if part and current is not None:
            yield part, current

    def _face(self, letter: str) -> Face | None:
        """Return the first font that has a letter; None where there is none."""
        for face in self._faces:
            if _has(face, letter):
                return face
        if letter in self.missing or self._searches == 0:
            return None
        self._searches -= 1
        for face in _search(letter):
            if _has(face, letter):
                self._faces.append(face)
                return face
        return None


@functools.lru_cache(maxsize=64)
def _font(face: Face, size: int) -> Any:
    """Return a font. Raises OSError where its file cannot be read."""
    if face == BUILT_IN:
        return PIL.ImageFont.load_default(size=size)
    return PIL.ImageFont.truetype(face[0], size, face[1])


@functools.lru_cache(maxsize=64)
def _unknown(face: Face) -> bytes | None:
    """Return how a font draws a letter that it lacks; None for a font that cannot be read."""
    try:
        return bytes(_font(face, 24).getmask("\uffff"))
    except OSError:
        return None


@functools.lru_cache(maxsize=8192)
def _has(face: Face, letter: str) -> bool:
    """Return whether a font has a letter: whether it draws it otherwise than one that it lacks."""
    unknown = _unknown(face)
    if unknown is None:
        return False
    return letter.isspace() or bytes(_font(face, 24).getmask(letter)) != unknown


@functools.lru_cache(maxsize=1024)
def _search(letter: str) -> tuple[Face, ...]:
    """Return the fonts in which fontconfig finds a letter, upright ones without serifs first; none without it."""
    pattern = f":charset={ord(letter):x}:scalable=true"
    try:
        output = subprocess.run(
            ["fc-list", "-f", "%{file}\t%{index}\t%{style}\t%{family}\n", pattern],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SEARCH_S,
            check=False,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = [row.split("\t") for row in output.splitlines() if row.count("\t") == 3]
    rows.sort(key=lambda row: ("Regular" not in row[2] and "Book" not in row[2], "Sans" not in row[3], row[0]))
    return tuple((file, int(index)) for file, index, _, _ in rows[:8] if index.isdecimal() and int(index) < 1 << 16)


def _script(letter: str) -> str:
    """Return the first word of a letter's name, which is its script: CJK, HANGUL, THAI."""
    return unicodedata.name(letter, "private use").split()[0].replace("private", "unnamed")
