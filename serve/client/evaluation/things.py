"""Pictures of one to five named things on a ground, with questions, captions, exact boxes and masks."""

import functools
import random
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from serve.client.evaluation.items import Item, Json, png_bytes
from serve.media import masks
from serve.toy.varied.names import enumerated, plural_name

CANVAS = (640, 480)
SIDES = (90, 200)
"""The least and the greatest side of a thing, in pixels."""
TASK_NAMES = ("vqa", "caption", "detect", "segment", "count")


@dataclass(frozen=True)
class PlacedThing:
    """A thing in a picture. key: of its cut-out. at: left and top; side: its longer one; all in pixels."""

    key: str
    at: tuple[int, int]
    side: int


@dataclass(frozen=True)
class ThingSet:
    """A named set.

    phrases: returns by key of a cut-out how it is called, with an article. cut_out: returns a cut-out by its key, RGBA,
    without space around it. ground: draws what is behind the things, RGB, as large as CANVAS. alike: whether two keys
    may be taken for each other: no picture has both, and none is asked about one that may be seen in the other.
    All raise Failure where the package is missing.
    """

    name: str
    phrases: Callable[[], Mapping[str, str]]
    cut_out: Callable[[str], Image.Image]
    ground: Callable[[random.Random], Image.Image]
    alike: Callable[[str, str], bool] = lambda first, second: False

    def items(self, names: Collection[str], count: int, seed: int) -> list[Item]:
        """Return the items of these tasks, task by task, `count` of each; the same ones for the same seed."""
        self.draw(seed)  # what is missing is missed before anything is asked
        return [self._item(task, at) for task in names for at in range(seed, seed + count)]

    def draw(self, seed: int) -> tuple[Image.Image, list[masks.Mask]]:
        """Return a picture and the pixels of each thing, bool [height, width]: those at least half opaque."""
        things, rng = self.place(seed)
        picture = self.ground(rng)
        outlines: list[masks.Mask] = []
        for thing in things:
            cut_out = ImageOps.contain(self.cut_out(thing.key), (thing.side, thing.side), Image.Resampling.LANCZOS)
            picture.paste(cut_out, thing.at, cut_out)
            outline = np.zeros((CANVAS[1], CANVAS[0]), np.bool_)
            (x, y), (width, height) = thing.at, cut_out.size
            outline[y : y + height, x : x + width] = np.asarray(cut_out.getchannel("A")) >= 128
            outlines.append(outline)
        return picture, outlines

    def place(self, seed: int) -> tuple[list[PlacedThing], random.Random]:
        """Return a picture's things from left to right, beside each other, and random numbers for its ground."""
        rng = random.Random(f"{self.name} {seed}")
        keys = tuple(self.phrases())
        few = rng.sample(keys, 3)  # kinds, so that some occur more than once
        while any(self.alike(key, other) for key in few for other in few):
            few = rng.sample(keys, 3)
        things: list[PlacedThing] = []
        for _ in range(rng.randint(1, 5)):
            side = rng.randint(*SIDES)
            for _ in range(30):
                x, y = rng.randrange(CANVAS[0] - side), rng.randrange(CANVAS[1] - side)
                if all(
                    x + side < other.at[0] or other.at[0] + other.side < x
                    or y + side < other.at[1] or other.at[1] + other.side < y
                    for other in things
                ):  # fmt: skip
                    things.append(PlacedThing(rng.choice(few), (x, y), side))
                    break
        return sorted(things, key=lambda thing: thing.at[0]), rng

    def _item(self, task: str, seed: int) -> Item:
        load = functools.partial(self._png, seed)
        return Item(f"{self.name}/{task}/{seed}", f"{self.name}/{seed}", task, *self._question(task, seed), load)

    def _question(self, task: str, seed: int) -> tuple[Json, Json]:
        """Return a request's fields and the true answer."""
        rng = random.Random(f"{self.name} {task} {seed}")
        phrases = self.phrases()
        keys = [thing.key for thing in self.place(seed)[0]]
        labels = [_label(phrases[key]) for key in keys]
        if task == "caption":
            numbers = Counter(phrases[key] for key in keys)
            return {}, {"captions": [enumerated([_counted(phrase, number) for phrase, number in numbers.items()])]}
        if task in ("detect", "segment"):
            boxes: list[Json] = []
            for label, mask in zip(labels, self.draw(seed)[1], strict=True):
                rows, columns = np.nonzero(mask)
                bounds = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
                box: Json = {"label": label, "box": [float(edge) for edge in bounds]}
                boxes.append(box | ({"mask": masks.encode(mask).model_dump()} if task == "segment" else {}))
            return {"labels": list(dict.fromkeys(labels))}, {"boxes": boxes}
        present = rng.random() < 0.6
        others = [key for key in phrases if not any(self.alike(key, other) for other in keys)]
        phrase = phrases[rng.choice(keys if present else others)]
        number = labels.count(_label(phrase))
        question = f"How many {plural_name(_label(phrase))} are there?"
        if task == "count":
            return {"question": question}, {"count": number}
        if rng.random() < 0.5:
            return {"question": f"Is there {phrase}?"}, {"answers": ["yes" if number else "no"], "kind": "exists"}
        return {"question": question}, {"answers": [str(number)], "kind": "count"}

    def _png(self, seed: int) -> bytes:
        return png_bytes(self.draw(seed)[0])


def _label(phrase: str) -> str:
    """Return a phrase without its article."""
    return phrase.split(" ", 1)[1]


def _counted(phrase: str, number: int) -> str:
    return phrase if number == 1 else f"{('two', 'three', 'four', 'five')[number - 2]} {plural_name(_label(phrase))}"
