"""Stamps on photographs as a labelled set: cut-outs that other people made, named by their own descriptions.

Stamps: Tux Paint's (GPL-2), of the package tuxpaint-stamps-default. Photographs: five of lomiri-wallpapers-16.04 that
show none of the stamps' things (CC BY 4.0; the bridge CC BY-SA 4.0).
"""

import functools
import random
import re
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageOps

from serve.client.evaluation.packages import packaged_file
from serve.client.evaluation.things import CANVAS, ThingSet

PACKAGES = "tuxpaint-stamps-default lomiri-wallpapers-16.04"
"""Both are named where either is missing: it takes one command."""
STAMPS = "usr/share/tuxpaint/stamps"
FOLDERS = ("animals", "clothes", "food", "hobbies", "household", "plants/flowers", "sports", "vehicles")
"""Folders of things that people know by a name, and that the photographs do not show."""
DESCRIPTION = re.compile(r"An? (?!very |.* of )[A-Za-z-]+( [A-Za-z-]+){0,2}[.!]")
"""A description that is a name of up to three words. Others tell stories ("Remember to flush the toilet ...")."""
BACKGROUNDS = "usr/share/backgrounds"
PHOTOGRAPHS = (
    "aitzgorri_by_Aitzol_Berasategi.jpg",
    "Bridge_by_Sander_Klootwijk.jpg",
    "life_by_Aitzol_Berasategi.jpg",
    "picosdeeuropa_by_Aitzol_Berasategi.jpg",
    "sunset_by_Aitzol_Berasategi.jpg",
)
PHOTOGRAPH_SIZE = (1280, 960)
"""Pixels to which a photograph is reduced; a picture's ground is at least half as wide a part of it."""


@functools.cache
def stamp_phrases() -> Mapping[str, str]:
    """Return the stamps' names with their articles, by path in STAMPS. Raises Failure where there are none."""
    root = packaged_file(STAMPS, PACKAGES)
    phrases: dict[str, str] = {}
    for file in sorted(path for folder in FOLDERS for path in (root / folder).rglob("*.png")):
        text = file.with_suffix(".txt")  # the first line is English, the others are translations
        if "cartoon" not in file.parts and text.is_file():
            first = text.read_text("utf-8").partition("\n")[0].strip()
            if DESCRIPTION.fullmatch(first):
                phrases[file.relative_to(root).as_posix()] = f"a{first[1:-1]}"
    return phrases


@functools.cache
def _stamp(key: str) -> Image.Image:
    stamp = Image.open(packaged_file(f"{STAMPS}/{key}", PACKAGES)).convert("RGBA")
    rows, columns = np.nonzero(np.asarray(stamp.getchannel("A")) >= 128)  # without the glow that some have
    return stamp.crop((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))


@functools.cache
def _photograph(name: str) -> Image.Image:
    photograph = Image.open(packaged_file(f"{BACKGROUNDS}/{name}", PACKAGES))
    photograph.draft("RGB", PHOTOGRAPH_SIZE)  # decodes a quarter of the pixels or fewer
    return ImageOps.fit(photograph.convert("RGB"), PHOTOGRAPH_SIZE)


def _part_of_photograph(rng: random.Random) -> Image.Image:
    photograph = _photograph(rng.choice(PHOTOGRAPHS))
    width = rng.randint(PHOTOGRAPH_SIZE[0] // 2, PHOTOGRAPH_SIZE[0])
    height = width * CANVAS[1] // CANVAS[0]
    x, y = rng.randint(0, PHOTOGRAPH_SIZE[0] - width), rng.randint(0, PHOTOGRAPH_SIZE[1] - height)
    return photograph.resize(CANVAS, Image.Resampling.LANCZOS, (x, y, x + width, y + height))


def _alike(first: str, second: str) -> bool:
    """Return whether differently named stamps are of one folder, as a drake and a duck, or share a word."""
    phrases = [stamp_phrases()[key] for key in (first, second)]
    nouns = [set(phrase.lower().split()[1:]) for phrase in phrases]
    folders = [key.split("/")[:-1][:2] for key in (first, second)]
    return phrases[0] != phrases[1] and (folders[0] == folders[1] or bool(nouns[0] & nouns[1]))


STAMP_SET = ThingSet("stamps", stamp_phrases, _stamp, _part_of_photograph, _alike)
