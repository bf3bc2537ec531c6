"""Scenes as training data: their pictures, a label for every patch, and questions in all tasks."""

import functools
import itertools
import math
import random
import re
import string
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image

from serve.media import geometry
from serve.toy import world
from serve.toy.questions import Question
from serve.toy.training import prompts
from serve.toy.varied import grammar
from serve.toy.varied.facts import PLACES, RELATION_AXES, Fact, caption_of, distance, frame_area, is_related
from serve.toy.varied.names import FONT_FILES, GROUNDS, PALETTE, SHAPE_OTHERS, STYLE_OTHERS, WRITTEN
from serve.toy.varied.scenes import (
    Thing,
    VariedScene,
    as_varied,
    letter_starts,
    owner_map,
    render,
    varied_scene,
    written_scene,
)
from serve.toy.world import Box

LETTERS = string.ascii_uppercase + string.ascii_lowercase + string.digits
LETTER_AT = (1 / 6, 1 / 2, 5 / 6)
"""Where in a patch's width its three letters are read: a patch is as wide as one to three."""
LONGEST = max(map(len, WRITTEN))
"""Letters of the longest word."""
SIZES, SMALLEST = 12, 0.006
"""Classes of what a thing's frame covers of the picture, each 1.4 times the one before, and where the first ends."""
MOST_THINGS = 8
NEIGHBOURS = {
    f"{side} {part}": classes + 2
    for side in ("nearest", *RELATION_AXES)
    for part, classes in (("shape", len(SHAPE_OTHERS)), ("color", len(PALETTE)))
}
"""Labels of the nearest other thing, and of the nearest one left and right of a thing, above and below; 1: nothing."""
CLASSES = {
    "shape": len(SHAPE_OTHERS) + 1,
    "color": len(PALETTE) + 1,
    "joint": len(SHAPE_OTHERS) * len(PALETTE) + 1,
    "style": len(STYLE_OTHERS) + 1,
    "background": len(GROUNDS),
    "texture": 3,
    "text": len(WRITTEN) + 2,
    "capitals": 3,
    "hundreds": 11,
    "tens": 11,
    "ones": 11,
    "left letter": len(LETTERS) + 1,
    "middle letter": len(LETTERS) + 1,
    "right letter": len(LETTERS) + 1,
    "letters before": LONGEST + 2,
    "letters after": LONGEST + 2,
    "place": len(PLACES) + 1,
    "size": SIZES + 1,
    "same shape": MOST_THINGS + 1,
    "same color": MOST_THINGS + 1,
    "things": MOST_THINGS + 1,
    "center": 3,
    "order": MOST_THINGS + 1,
    "size order": MOST_THINGS + 1,
    "first of shape": 3,
    "first of color": 3,
    "shapes": MOST_THINGS + 1,
    "colors": MOST_THINGS + 1,
    **NEIGHBOURS,
}
"""Labels of a patch and their numbers of classes. Those that are not dense have 0 where nothing is. New ones come last:
weights that were trained without them are taken over by this order. From `place` on they say what questions ask of a
thing: where it is, how large, how many there are, of its shape and of its colour; then which of its patches is its
center, how many things are before it, from left to right and by size, whether it is the first of its shape and of its
colour; how many different shapes and colours there are; and what is beside it."""
DENSE = frozenset({"background", "texture", "things", "shapes", "colors"})
TEXTURES = ("plain", "graded", "noisy")
FONTS = tuple(FONT_FILES)
"""All of them: a toy that is trained without some would be another."""
TEXT_TOKENS = 200
_SAYING = re.findall(r"[a-z]+", " ".join((
    *grammar.slot_names(),
    *(text for table in (grammar.TRAINING.references, grammar.TRAINING.extremes, grammar.TRAINING.relations,
                         grammar.TRAINING.places) for texts in table.values() for text in texts),
    "no not nor non without but except other others first last small big large next near far between",
)))  # fmt: skip
FILLERS = sorted({word for text in grammar.texts() for word in re.findall(r"[a-z]{2,}", text)} - {*_SAYING})
"""Words of questions that do not say which things are meant."""
_KEY_OF = {
    word: key for key, known in (("style", STYLE_OTHERS), ("color", PALETTE), ("kind", SHAPE_OTHERS)) for word in known
}
_NAME = re.compile(r"\b(?:[Aa]n? )?((?:{0})(?: (?:{0}))*)\b".format("|".join(_KEY_OF)))
"""Words for a thing in an answer, which has the first name of each colour, shape and style."""
SMALL_WORDS = frozenset("a an the is are do does there of in it you can any that".split())
MOST_MASKS = 4
"""The most masks asked for at once: each is twenty tokens."""
FINE = 8
"""Pixels of a patch's side where it is found out what covers most of it."""
WORK = Path(__file__).parents[3] / "build" / "toy"
"""Where drawn scenes and the state of training are, unless --work says otherwise."""


@functools.lru_cache(maxsize=256)  # a step draws its scenes, then asks about them
def training_scene(seed: int) -> VariedScene:
    """Return the training scene of a seed; half have text, as reading is learnt last, and one in ten is of `world`,
    of which checks and load tests ask."""
    written = random.Random(f"text {seed}").random() < 0.5
    if seed % 10 == 0:
        return as_varied(world.scene(seed, text=written))
    return varied_scene(seed, writing=written, fonts=FONTS)


def written_training_scene(seed: int) -> VariedScene:
    return written_scene(seed, FONTS)


def draw_softened(scene: VariedScene, rng: random.Random) -> PIL.Image.Image:
    """Draw a scene with hard edges, or, half the time, larger and scaled down, which makes them soft."""
    if rng.random() < 0.5:
        return render(scene)
    scale = rng.uniform(1.5, 2.5)
    return render(scene, scale).resize(scene.size, PIL.Image.Resampling.LANCZOS)


def patch_labels(scene: VariedScene, family: str, grid: int) -> tuple[np.ndarray, np.ndarray]:
    """Return labels (grid², classes) and edges (grid², 4) of what is seen in most of a patch, at least a fifth."""
    names = list(CLASSES)
    labels = np.zeros((grid**2, len(CLASSES)), np.uint8)
    edges = np.zeros((grid**2, 4), np.float32)
    labels[:, names.index("background")] = list(GROUNDS).index(scene.background)
    labels[:, names.index("texture")] = TEXTURES.index(scene.texture)
    for name, values in (("things", scene.things), ("shapes", {t.kind for t in scene.things}),
                         ("colors", {t.color for t in scene.things})):  # fmt: skip
        labels[:, names.index(name)] = len(values)
    boxes = [thing.box for thing in scene.things]
    if scene.writing is not None:
        boxes.append(scene.writing.box)
    owners = _square_map(scene, family, grid * FINE)
    cover = np.stack([
        (owners == index + 1).reshape(grid, FINE, grid, FINE).mean((1, 3)).ravel() for index in range(len(boxes))
    ])  # fmt: skip
    if family == "llava":
        boxes = [prompts.padded(box, scene.size) for box in boxes]
    owner, most = cover.argmax(0), cover.max(0)
    for index, box in enumerate(boxes):
        covered = (owner == index) & (most > min(0.2, 0.9 * cover[index].max()))
        if index < len(scene.things):
            thing = scene.things[index]
            kind, color = list(SHAPE_OTHERS).index(thing.kind), list(PALETTE).index(thing.color)
            style = list(STYLE_OTHERS).index(thing.style)
            labels[covered, :4] = kind + 1, color + 1, 1 + kind * len(PALETTE) + color, style + 1
            for name, value in _related_labels(thing, scene).items():
                labels[covered, names.index(name)] = value
            labels[_middle_of(covered, grid), names.index("center")] += 1
            edges[covered] = box
        elif scene.writing is not None:
            letters = names.index("left letter")
            labels[covered, names.index("text") : letters] = _written_labels(scene.writing.text)
            labels[covered, letters : letters + 5] = _letter_labels(scene, family, grid)[np.flatnonzero(covered) % grid]
            labels[covered, names.index("place")] = _place_label(scene.writing.box)
            edges[covered] = box
    return labels, edges


def _related_labels(thing: Thing, scene: VariedScene) -> dict[str, int]:
    """Return the classes of what a thing is among the others."""
    things, others = scene.things, [other for other in scene.things if other != thing]
    at = things.index(thing)
    classes = {
        "place": _place_label(thing.box),
        "size": min(SIZES, 1 + int(math.log(max(1.0, frame_area(thing) / SMALLEST), 1.4))),
        "same shape": sum(other.kind == thing.kind for other in things),
        "same color": sum(other.color == thing.color for other in things),
        "center": 1,
        "order": 1 + at,
        "size order": 1 + sum(frame_area(other) > frame_area(thing) for other in others),
        "first of shape": 1 + (thing.kind not in {other.kind for other in things[:at]}),
        "first of color": 1 + (thing.color not in {other.color for other in things[:at]}),
    }
    sides = {side: [other for other in others if is_related(other, thing, side)] for side in RELATION_AXES}
    for side, there in {"nearest": others, **sides}.items():
        near = min(there, key=lambda other: distance(thing, other, scene.size), default=None)
        classes[f"{side} shape"] = 1 if near is None else 2 + list(SHAPE_OTHERS).index(near.kind)
        classes[f"{side} color"] = 1 if near is None else 2 + list(PALETTE).index(near.color)
    return classes


def _middle_of(covered: np.ndarray, grid: int) -> np.ndarray:
    """Return the one of a thing's patches, (grid²,) booleans, that is nearest to their middle; none of none."""
    at = np.flatnonzero(covered)
    if not len(at):
        return at
    places = np.stack(np.divmod(at, grid), 1)
    return at[[((places - places.mean(0)) ** 2).sum(1).argmin()]]


def _place_label(box: tuple[float, float, float, float]) -> int:
    column, row = (1 + (at > 0.62) - (at < 0.38) for at in ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2))
    return 1 + 3 * row + column


def _written_labels(text: str) -> tuple[int, ...]:
    """Return the classes of text, capitals, hundreds, tens and ones."""
    if not text.isdigit():
        return WRITTEN.index(text.upper()) + 1, 1 + (text != text.upper()), 0, 0, 0
    digits = [int(digit) + 1 for digit in text]
    hundreds, tens, ones = [0] * (3 - len(digits)) + digits
    return len(WRITTEN) + 1, 0, hundreds, tens, ones


def _letter_labels(scene: VariedScene, family: str, grid: int) -> np.ndarray:
    """Return for each column of patches (grid, 5) its three letters, and how many come before the middle one and after
    it, each plus one."""
    assert scene.writing is not None, "the scene has text"
    starts = np.array(letter_starts(scene.writing))
    if family == "llava":
        full, x, _ = geometry.padding(*scene.size)
        starts = (starts * scene.size[0] + x) / full
    at = (np.arange(grid)[:, None] + np.array(LETTER_AT)) / grid
    # a column whose edge alone is written on reads the first or last letter
    index = np.clip(np.searchsorted(starts, at, side="right") - 1, 0, None)
    letters = np.array([LETTERS.index(letter) + 1 for letter in scene.writing.text])[index]
    before = index[:, 1:2]
    return np.hstack([letters, before + 1, len(starts) - before])


def _square_map(scene: VariedScene, family: str, side: int) -> np.ndarray:
    """Return which thing (or, last, text) is seen at each pixel of the square that the tower gets."""
    width, height = (side, side)
    left = top = 0
    if family == "llava":
        full, x, y = geometry.padding(*scene.size)
        scale = side / full
        width, height = max(1, round(scene.size[0] * scale)), max(1, round(scene.size[1] * scale))
        left, top = min(round(x * scale), side - width), min(round(y * scale), side - height)
    square = np.zeros((side, side), np.uint8)
    inside = owner_map(scene, (width, height)).copy()
    if scene.writing is not None:
        x0, y0, x1, y1 = scene.writing.box
        inside[int(y0 * height) : int(y1 * height) + 1, int(x0 * width) : int(x1 * width) + 1] = len(scene.things) + 1
    square[top : top + height, left : left + width] = inside
    return square


def training_questions(
    scene: VariedScene,
    family: str,
    rng: random.Random,
    *,
    vqa: int = 8,
    detect: int = 3,
    segment: int = 0,
    absent: float = 0.0,
) -> list[Question]:
    """Return different questions about a scene in random order.

    vqa, detect, segment: how many of each task. absent: the share of detect and segment questions about an absent
    thing.
    """
    caption = caption_of(scene)
    named = named_things(caption, scene, scene.things)
    listed = [Question("caption", "caption", "", caption, named=named, about=kinds_and_colors(scene.things))]
    if scene.writing is not None or rng.random() < 0.1:
        listed.append(Question("ocr", "ocr", "", scene.writing.text if scene.writing is not None else "nothing"))
    for text, fact in grammar.some_questions(scene, rng, vqa):
        listed.append(short(in_other_words(text, rng), fact, scene))
    for task in ("detect",) * detect + ("segment",) * segment:
        question = _locate(task, scene, family, rng, absent)
        listed += [] if question is None else [question]
    if family == "llava":
        for kind in ("everything", None):
            pairs = grammar.some_questions(scene, rng, 1) if kind is None else [grammar.phrased(scene, kind, rng)]
            listed += [
                _question("chat", "chat", pair[0], pair[1].sentence, pair[1], scene)
                for pair in pairs if pair is not None
            ]  # fmt: skip
    chosen = list({(question.task, question.text): question for question in listed}.values())
    rng.shuffle(chosen)
    return chosen


def in_other_words(text: str, rng: random.Random, least: int = 4) -> str:
    """Return a question of `least` words or more with, one time in eight, a word that means nothing, and, as often,
    without one of its small words: people use words that no grammar has, and what they ask is in the others."""
    question_words = text.split(" ")
    if len(question_words) >= least and rng.random() < 1 / 8:
        pairs = (rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") for _ in range(rng.randint(1, 4)))
        at = rng.randrange(len(question_words))
        question_words.insert(at, "".join(pairs) + rng.choice(("", "n", "r", "s", "t", ",")))
    small = [index for index, word in enumerate(question_words) if word.lower() in SMALL_WORDS]
    if len(question_words) >= least and small and rng.random() < 1 / 8:
        del question_words[rng.choice(small)]
    return " ".join(question_words)


def among_other_words(phrase: str, rng: random.Random) -> str:
    """Return a phrase, four times in ten, with one to three words before or after it that change nothing. A reply
    repeats the phrase, so whatever words it has must be copied: known phrases alone are learnt by heart."""
    if rng.random() < 0.6:
        return phrase
    more = " ".join(rng.choices(FILLERS, k=rng.randint(1, 3)))
    return rng.choice((f"{more} {phrase}", f"{phrase} {more}"))


def short(text: str, fact: Fact, scene: VariedScene) -> Question:
    return _question("vqa", fact.kind, text, fact.answers[0], fact, scene)


def _question(task: str, kind: str, text: str, answer: str, fact: Fact, scene: VariedScene) -> Question:
    meant = tuple((phrase, thing.box) for phrase, thing in fact.meant.items())
    about = None if fact.about is None else kinds_and_colors(fact.about)
    named = named_things(answer, scene, (fact.about or ()) if fact.parts else ())
    counts = tuple(fact.counts.items())
    return Question(task, kind, text, answer, meant=meant, named=named, counts=counts, about=about)


def kinds_and_colors(things: Sequence[Thing]) -> tuple[tuple[str, str], ...]:
    return tuple((thing.kind, thing.color) for thing in things)


def named_things(answer: str, scene: VariedScene, listed: Sequence[Thing] = ()) -> tuple[tuple[int, Box], ...]:
    """Return where in an answer the names of things begin that mean one thing each, and their boxes. listed: the things
    that the answer lists in this order; of several that have a name, it means the first that was not named before."""
    located, left = [], list(listed)
    for match in _NAME.finditer(answer):
        said_of = {_KEY_OF[word]: word for word in match[1].split(" ")}
        same = [thing for thing in scene.things if all(getattr(thing, key) == v for key, v in said_of.items())]
        first = next((thing for thing in left if thing in same), None)
        if first is not None:
            left.remove(first)
        elif len(same) == 1:
            first = same[0]
        if first is not None:
            located.append((match.start(), first.box))
    return tuple(located)


def _locate(task: str, scene: VariedScene, family: str, rng: random.Random, absent: float) -> Question | None:
    """Ask for the boxes or masks of a phrase, or, of PaliGemma, also of some phrases at once."""
    if absent and rng.random() < absent:
        return Question(task, "absent", grammar.missing(scene, rng))
    if task == "detect" and scene.writing is not None and rng.random() < 0.1:
        phrase = rng.choice(("text", "the text", "word", "number" if scene.writing.text.isdigit() else "the word"))
        return Question(task, "text", phrase, boxes=((phrase, scene.writing.box),))
    several = family == "paligemma" and rng.random() < 0.35
    by_phrase: dict[str, list[Thing]] = {}
    for at in range(rng.choice((2, 2, 3)) if several else 1):
        if at and rng.random() < 0.2:
            by_phrase.setdefault(grammar.missing(scene, rng), [])
            continue
        pair = grammar.located(scene, rng, single=family == "llava" or rng.random() < (0.6 if several else 0.35))
        if pair is not None:
            by_phrase.setdefault(among_other_words(in_other_words(pair[0], rng, least=2), rng), pair[1])
    sought = [(phrase, thing) for phrase, things in by_phrase.items() for thing in things]
    if not sought or (task == "segment" and len(sought) > MOST_MASKS):
        return None
    text = " ; ".join(by_phrase)
    starts = [0, *itertools.accumulate(len(phrase) + 3 for phrase in by_phrase)]
    in_place = {phrase for phrase, start in zip(by_phrase, starts, strict=False) if text.index(phrase) == start}
    boxes = tuple((phrase, thing.box) for phrase, thing in sought)
    # a phrase that is part of one before it would be taken for that one's end
    alone = tuple((phrase, box) for phrase, box in boxes if len(by_phrase[phrase]) == 1 and phrase in in_place)
    codes = tuple(prompts.CODES[thing.kind] for _, thing in sought) if task == "segment" else ()
    counts = tuple((phrase, len(things)) for phrase, things in by_phrase.items())
    about = kinds_and_colors([thing for _, thing in sought])
    return Question(task, task, text, boxes=boxes, codes=codes, meant=alone, counts=counts, about=about)
