"""Writing that is not ours as labelled sets: words typeset by Pango, captchas, and digits written by hand.

`words`: pango-view of pango1.0-tools (LGPL-2+) sets words of the GPL, which every Debian has. `captcha`: the package
captcha (BSD-3-Clause), in its font (Apache-2.0). `digits`: scikit-learn (BSD-3-Clause) ships 1797 digits of 13 people,
8 x 8 pixels each, from UCI's repository (CC BY 4.0).
"""

import functools
import random
import re
import subprocess
import tempfile
import threading
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from serve.client.evaluation.items import Item, Json, png_bytes
from serve.client.evaluation.packages import packaged_file, packaged_module
from serve.client.http_client import Failure

READ = ("ocr",)
"""The task of words and captchas."""
DIGIT_TASKS = ("vqa", "ocr", "classify")
FAMILIES = ("Sans", "Serif", "Monospace")
STYLES = ("", "Bold", "Italic", "Bold Italic")
INKS = (("#101010", "#ffffff"), ("#1a2a6c", "#fff4d6"), ("#ffffff", "#7a1f2b"), ("#f5e663", "#20303c"))
"""Colours of a text and of the ground under it."""
CAPTCHA_LETTERS = "23456789ABCDEFGHJKLMNPQRSTUVWXYZ"
"""Without 0 and O, 1 and I."""
CAPTCHA_SIZE = (180, 70)
CELL, MARGIN = 12, 4
"""Pixels of a picture for each of a digit's 8 x 8, and how many of these are left blank around the digits."""
_patched = threading.Lock()


def _read_items(name: str, count: int, seed: int, written: Callable[[random.Random], tuple[str, Any]]) -> list[Item]:
    """Return items of ocr. written: returns a text, and the function that draws it."""
    pairs = [(at, written(random.Random(f"{name} {at}"))) for at in range(seed, seed + count)]
    return [Item(f"{name}/ocr/{at}", f"{name}/{at}", "ocr", {}, {"text": text}, draw) for at, (text, draw) in pairs]


def word_items(names: Collection[str], count: int, seed: int) -> list[Item]:
    """Return pictures of one to three lines of words; the same texts for the same seed, in the fonts of this machine.

    Raises Failure where a package is missing.
    """
    program = packaged_file("usr/bin/pango-view", "pango1.0-tools")
    licence = packaged_file("usr/share/common-licenses/GPL-3", "base-files").read_text("utf-8")
    vocabulary = sorted(set(re.findall(r"\b[a-z]{3,9}\b", licence)))

    def written(rng: random.Random) -> tuple[str, Any]:
        lines = [" ".join(rng.choices(vocabulary, k=rng.randint(1, 4))) for _ in range(rng.randint(1, 3))]
        text = "\n".join(rng.choice((line, line.capitalize(), line.upper())) for line in lines)
        ink, ground = rng.choice(INKS)
        return text, functools.partial(
            _set_by_pango,
            program,
            text,
            f"--font={rng.choice(FAMILIES)} {rng.choice(STYLES)} {rng.randint(16, 40)}",
            f"--foreground={ink}",
            f"--background={ground}",
            f"--rotate={rng.choice((0, 0, rng.randint(-6, 6)))}",
        )

    return _read_items("words", count, seed, written)


def _set_by_pango(program: Path, text: str, *options: str) -> bytes:
    """Return a PNG file. Raises Failure."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "text.png")
        command = [str(program), "--no-display", f"--text={text}", "--margin=30", f"--output={file}", *options]
        ran = subprocess.run(command, capture_output=True, text=True)
        if ran.returncode or not file.is_file():
            raise Failure(f"{program} drew nothing: {ran.stderr.strip() or ran.returncode}.")
        return file.read_bytes()


def captcha_items(names: Collection[str], count: int, seed: int) -> list[Item]:
    """Return captchas of four to six letters; the same ones for the same seed. Raises Failure without the package."""
    image = packaged_module("captcha.image", "captcha")

    def written(rng: random.Random) -> tuple[str, Any]:
        text = "".join(rng.choices(CAPTCHA_LETTERS, k=rng.randint(4, 6)))
        return text, functools.partial(_captcha, image, text, rng.getrandbits(64))

    return _read_items("captcha", count, seed, written)


class _SeededSecrets(random.Random):
    """A random.Random with the functions of `secrets` that the package calls."""

    def randbelow(self, end: int) -> int:
        return self.randrange(end)

    def randbits(self, count: int) -> int:
        return self.getrandbits(count)


def _captcha(image: Any, text: str, seed: int) -> bytes:
    with _patched:  # pictures are drawn in several threads, and the module is shared
        image.secrets, kept = _SeededSecrets(seed), image.secrets
        try:
            drawing = image.ImageCaptcha(*CAPTCHA_SIZE)
            drawing.word_space_probability = 1.0  # no gap looks like a space
            return bytes(drawing.generate(text).getvalue())
        finally:
            image.secrets = kept


def digit_items(names: Collection[str], count: int, seed: int) -> list[Item]:
    """Return single digits (vqa, classify) and rows of three to six (ocr); the same ones for the same seed.

    Raises Failure without the package.
    """
    digits = packaged_module("sklearn.datasets", "scikit-learn").load_digits()
    items = []
    for task in names:
        for at in range(seed, seed + count):
            rng = random.Random(f"digits {task} {at}")
            chosen = rng.sample(range(len(digits.target)), rng.randint(3, 6) if task == "ocr" else 1)
            fields, truth = _digit_question(task, [str(digits.target[index]) for index in chosen])
            load = functools.partial(_row_of_digits, digits.images[chosen])
            items.append(Item(f"digits/{task}/{at}", f"digits/{task}/{at}", task, fields, truth, load))
    return items


def _digit_question(task: str, digits: Sequence[str]) -> tuple[Json, Json]:
    if task == "vqa":
        return {"question": "What digit is this?"}, {"answers": list(digits)}
    if task == "classify":
        return {"labels": list("0123456789"), "multiple": False}, {"labels": list(digits)}
    return {}, {"text": "".join(digits)}


def _row_of_digits(tiles: Any) -> bytes:
    """Draw digits, float [digits, 8, 8] from 0 (paper) to 16 (ink), as a number: as close as a hand writes them."""
    inked = [np.pad(tile[:, tile.any(axis=0)], ((0, 0), (0, 1))) for tile in tiles]
    cells = np.pad(np.hstack(inked), MARGIN)
    picture = Image.fromarray((255 - cells * 255 / 16).astype(np.uint8))
    size = picture.width * CELL, picture.height * CELL
    return png_bytes(picture.resize(size, Image.Resampling.BICUBIC).convert("RGB"))
