"""Facts about a varied scene that one can ask for: what a fact is, how things are named, and which replies are right.

kinds.py computes facts from the scene; a grammar (grammar.py, exam.py) puts them into words.
"""

import itertools
import math
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from serve.toy.varied.names import (
    COLOR_NAMES,
    NOUNS,
    PALETTE,
    SHAPE_NAMES,
    SHAPE_OTHERS,
    STYLE_OTHERS,
    enumerated,
    plural_name,
    with_article,
)  # fmt: skip
from serve.toy.varied.scenes import Thing, VariedScene
from serve.toy.world import Box

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True)
class Fact:
    """A question's content. kind: which of KINDS. slots: the pieces that a template of this kind names. answers: the
    right short answers, the first being the one that is trained. sentence: the right answer as a sentence.
    parts: the names that a list must hold, in any order; empty where the answer is no list. meant: the phrases that
    mean one thing. counts: phrases with the number of things that each means. about: the things that were counted,
    listed or looked for, or None."""

    kind: str
    slots: Mapping[str, str]
    answers: tuple[str, ...]
    sentence: str
    parts: tuple[str, ...] = ()
    meant: Mapping[str, Thing] = field(default_factory=dict, compare=False)
    counts: Mapping[str, int] = field(default_factory=dict, compare=False)
    about: tuple[Thing, ...] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Wording:
    """A way to speak. Texts hold slots `{thing}` and alternatives `[a|b|]`, one of which is said.

    templates: by kind of fact. nouns: words for any thing, with their plurals. references: by what they name (`color`,
    `kind`, `style`, with blanks between) noun phrases without an article. extremes: by `left`, `right`, `top`,
    `bottom`, `biggest`, `smallest` phrases for the thing that is so, with {noun}. relations: by `left`, `right`,
    `above`, `below`. places: by the corners and the middle. openings, endings: what may stand around a question.
    phrases: what detect and segment take for all {things}. written: names of the word or number. strangers: names
    of things that are never there. synonyms: words of templates with others that may stand in their place.
    """

    templates: Mapping[str, tuple[str, ...]]
    nouns: Mapping[str, str]
    references: Mapping[str, tuple[str, ...]]
    extremes: Mapping[str, tuple[str, ...]]
    relations: Mapping[str, tuple[str, ...]]
    places: Mapping[str, tuple[str, ...]]
    openings: tuple[str, ...]
    endings: tuple[str, ...]
    phrases: tuple[str, ...]
    written: tuple[str, ...]
    strangers: tuple[str, ...] = tuple(NOUNS)
    synonyms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


NAMED_BY = (
    ("kind",), ("kind",), ("color",), ("color",), ("color", "kind"), ("color", "kind"), ("style", "kind"), ("style",),
    ("style", "color"), ("style", "color", "kind"),
)  # fmt: skip
"""The attributes that people name things by, the usual ones more than once."""
PLACES = tuple(
    f"{high} {wide}".strip() for high in ("top", "", "bottom") for wide in ("left", "", "right") if high or wide
) + ("middle",)
RELATION_AXES = {"left": (0, -1), "right": (0, 1), "above": (1, -1), "below": (1, 1)}
OPPOSITES = {"left": "right", "right": "left", "above": "below", "below": "above"}


def expansions(text: str) -> list[str]:
    """Return every way to read a text with alternatives `[a|b|]`."""
    match = re.search(r"\[([^\[\]]*)\]", text)
    if match is None:
        return [" ".join(text.split())]
    return [
        whole
        for part in match[1].split("|")
        for whole in expansions(text[: match.start()] + part + text[match.end() :])
    ]


def chosen(text: str, rng: random.Random) -> str:
    """Return a text with one of each group of alternatives."""
    while match := re.search(r"\[([^\[\]]*)\]", text):
        text = text[: match.start()] + rng.choice(match[1].split("|")) + text[match.end() :]
    return " ".join(text.split())


class Phraser:
    """A speaker with a wording who describes things of one scene. meant, counts, about: as in Fact, of what was said
    so far."""

    def __init__(self, scene: VariedScene, rng: random.Random, wording: Wording) -> None:
        self.scene, self.rng, self.wording = scene, rng, wording
        self.things = scene.things
        self.meant: dict[str, Thing] = {}
        self.counts: dict[str, int] = {}
        self.about: tuple[Thing, ...] | None = None

    def pick(self, texts: Sequence[str]) -> str:
        return chosen(self.rng.choice(texts), self.rng)

    def color(self, name: str) -> str:
        """Return a name of a colour, now and then another than that of the answers."""
        others = PALETTE[name].others
        return self.rng.choice(others) if others and self.rng.random() < 0.3 else name

    def kind(self, name: str) -> str:
        others = SHAPE_OTHERS[name]
        return self.rng.choice(others) if others and self.rng.random() < 0.25 else name

    def style(self, name: str) -> str:
        return self.rng.choice((name, *STYLE_OTHERS[name]))

    def named(self, attributes: Mapping[str, str], many: bool = False) -> str:
        """Return a noun phrase without an article for things with these attributes, as `red circle`, `hollow ones`."""
        keys = " ".join(key for key in ("style", "color", "kind") if key in attributes)
        text = self.pick(self.wording.references[keys])
        noun = self.rng.choice(tuple(self.wording.nouns))
        slots = {"noun": self.wording.nouns[noun] if many else noun}
        for key, render in (("color", self.color), ("kind", self.kind), ("style", self.style)):
            if key in attributes:
                slots[key] = render(attributes[key])
        if many and "kind" in slots:
            slots["kind"] = plural_name(slots["kind"])
        text = text.format(**slots)
        if many:
            text = re.sub(r"\bone$", "ones", text).replace(" that is ", " that are ")
        self.counts[text] = len(self.matching(attributes))
        return text

    def matching(self, attributes: Mapping[str, str]) -> list[Thing]:
        return [thing for thing in self.things if all(getattr(thing, key) == v for key, v in attributes.items())]

    def sought(self, attributes: Mapping[str, str]) -> list[Thing]:
        """Return the matching things, which are what the answer is about."""
        things = self.matching(attributes)
        self.about = tuple(things)
        return things

    def everything(self) -> Sequence[Thing]:
        """Return all things, which are what the answer is about."""
        self.about = tuple(self.things)
        return self.things

    def reference(self, thing: Thing, without: Iterable[str] = (), extremes: bool = True) -> str | None:
        """Return a phrase with `the` that means this thing alone and does not name these attributes; None where there
        is none. without: of `color`, `kind`, `style`."""
        usable = [key for key in ("style", "color", "kind") if key not in set(without)]
        sets = [
            {key: getattr(thing, key) for key in usable if key in keys}
            for keys in (
                {"kind"},
                {"color"},
                {"color", "kind"},
                {"style"},
                {"style", "kind"},
                {"style", "color", "kind"},
            )
        ]
        unique = [attributes for attributes in sets if attributes and self.matching(attributes) == [thing]]
        ends = [name for name in self.wording.extremes if extremes and self.extreme(name) == thing]
        if ends and (not unique or self.rng.random() < 0.25):
            return self.end(self.rng.choice(ends), thing)
        if not unique:
            return None
        fewest = min(map(len, unique))
        short = [attributes for attributes in unique if len(attributes) == fewest]
        text = "the " + self.named(self.rng.choice(short if self.rng.random() < 0.7 else unique))
        self.meant[text] = thing
        return text

    def end(self, name: str, thing: Thing) -> str:
        """Return a phrase for the thing that is the leftmost, biggest and so on."""
        text = "the " + self.pick(self.wording.extremes[name]).format(noun=self.noun())
        self.meant[text] = thing
        return text

    def some_end(self) -> tuple[Thing, str] | None:
        """Return a thing that is the leftmost, biggest and so on with a phrase that says so, or None."""
        ends = [(name, thing) for name in self.wording.extremes if (thing := self.extreme(name)) is not None]
        if not ends:
            return None
        name, thing = self.rng.choice(ends)
        return thing, self.end(name, thing)

    def noun(self, many: bool = False) -> str:
        noun = self.rng.choice(tuple(self.wording.nouns))
        return self.wording.nouns[noun] if many else noun

    def extreme(self, name: str) -> Thing | None:
        """Return the thing that is clearly the leftmost, biggest and so on (a key of `Wording.extremes`), or None."""
        if len(self.things) < 2:
            return None
        if name in ("biggest", "smallest"):
            for thing in self.things:
                if all(is_larger(thing, other) == (name == "biggest") for other in self.things if other != thing):
                    return thing
            return None
        axis, sign = {"left": (0, 1), "right": (0, -1), "top": (1, 1), "bottom": (1, -1)}[name]
        row = sorted(self.things, key=lambda thing: sign * thing.center[axis])
        return row[0] if abs(row[0].center[axis] - row[1].center[axis]) > 0.1 else None

    def referable(self, without: Iterable[str] = ()) -> tuple[Thing, str] | None:
        """Return a thing and a phrase that means it alone, or None."""
        return next(self.references(without), None)

    def pair(self) -> tuple[tuple[Thing, str], tuple[Thing, str]] | None:
        """Return two things with phrases by their attributes that mean them alone, or None."""
        both = list(itertools.islice(self.references(extremes=False), 2))
        return (both[0], both[1]) if len(both) == 2 else None

    def references(self, without: Iterable[str] = (), extremes: bool = True) -> Iterator[tuple[Thing, str]]:
        """Yield things in random order with phrases that mean them alone, those that have one."""
        for thing in self.rng.sample(self.things, len(self.things)):
            text = self.reference(thing, without, extremes)
            if text is not None:
                yield thing, text

    def attributes(self, thing: Thing) -> dict[str, str]:
        """Return some attributes of a thing, as one names things by."""
        keys = self.rng.choice(NAMED_BY)
        return {key: getattr(thing, key) for key in keys}

    def some(self) -> dict[str, str]:
        """Return attributes that things may have: of one that is there, or, as often, such as none has."""
        thing = self.rng.choice(self.things)
        if self.rng.random() < 0.5:
            return self.attributes(thing)
        for _ in range(20):
            traits = self.attributes(thing)
            if self.rng.random() < 0.75:  # near: one attribute of a thing that is there is changed
                key = self.rng.choice(tuple(traits))
                traits[key] = self.any(key)
            else:
                traits = {key: self.any(key) for key in traits}
            if not self.matching(traits):
                return traits
        return self.attributes(thing)

    def any(self, key: str) -> str:
        names: Mapping[str, tuple[str, ...]] = {
            "color": tuple(PALETTE), "kind": tuple(SHAPE_OTHERS), "style": tuple(STYLE_OTHERS),
        }  # fmt: skip
        return self.rng.choice(names[key])

    def stranger(self) -> str:
        """Return a name of a thing that is not there, nor spelt out in the picture."""
        written = self.scene.writing.text.lower() if self.scene.writing is not None else ""
        return self.rng.choice([noun for noun in self.wording.strangers if not written.startswith(noun)])


def frame_area(thing: Thing) -> float:
    x0, y0, x1, y1 = thing.frame
    return (x1 - x0) * (y1 - y0)


FULLNESS = {"square": 1.0, "rectangle": 1.0, "circle": 0.785, "ellipse": 0.785, "cross": 0.56, "star": 0.35,
            "triangle": 0.5, "diamond": 0.5, "heart": 0.63, "moon": 0.61}  # fmt: skip
"""The part of its frame that a shape fills."""


def is_larger(first: Thing, second: Thing) -> bool | None:
    """Return whether the first is larger than the second, or None where it is not clear: its frame must be larger by
    four tenths, and what is painted not smaller."""
    frames = frame_area(first) / frame_area(second)
    painted = frames * FULLNESS[first.kind] / FULLNESS[second.kind]
    if min(frames, painted) > 1 and frames > 1.4:
        return True
    return False if max(frames, painted) < 1 and frames < 1 / 1.4 else None


def place_of(box: Box) -> str | None:
    """Return `top left`, `left`, `middle` and so on, by thirds; None for a box between two of them."""
    names = []
    for at, sides in (((box[1] + box[3]) / 2, ("top", "", "bottom")), ((box[0] + box[2]) / 2, ("left", "", "right"))):
        if 0.34 < at < 0.42 or 0.58 < at < 0.66:
            return None
        names.append(sides[0] if at < 0.38 else sides[2] if at > 0.62 else sides[1])
    return " ".join(filter(None, names)) or "middle"


def reaches(box: Box, place: str) -> bool:
    """Return whether a box has a part in a corner of the picture or, of `middle`, in the middle, by thirds."""
    x0, y0, x1, y1 = box
    for low, high, first, last in ((x0, x1, "left", "right"), (y0, y1, "top", "bottom")):
        start, end = (0.0, 0.38) if first in place else (0.62, 1.0) if last in place else (0.38, 0.62)
        if high <= start or low >= end:
            return False
    return True


def is_related(first: Thing, second: Thing, relation: str) -> bool | None:
    """Return whether the first is left of the second, or `right`, `above`, `below`; None where it is not clear."""
    axis, sign = RELATION_AXES[relation]
    gap = sign * (first.center[axis] - second.center[axis])
    return None if abs(gap) < 0.09 else gap > 0


def distance(first: Thing, second: Thing, size: tuple[int, int]) -> float:
    """Return the distance of two things' middles in pixels, in a picture of this width and height."""
    (x0, y0), (x1, y1) = first.center, second.center
    return math.hypot((x0 - x1) * size[0], (y0 - y1) * size[1])


def thing_between(things: Iterable[Thing], a: Thing, b: Thing) -> Thing | None:
    """Return the only thing between two, or None where there is none, another, or one of which it is not clear."""
    (ax, ay), (bx, by) = a.center, b.center
    length = math.hypot(bx - ax, by - ay)
    inside = []
    for other in things:
        x, y = other.center
        along = ((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / length**2
        off = abs((x - ax) * (by - ay) - (y - ay) * (bx - ax)) / length
        if other not in (a, b) and 0 < along < 1 and off < 0.24:
            if not (0.25 < along < 0.75 and off < 0.14):
                return None
            inside.append(other)
    return inside[0] if len(inside) == 1 and length > 0.3 else None


def is_past(box: Box, thing: Thing, relation: str) -> bool:
    """Return whether a part of a box is left of a thing's middle, or `right`, `above`, `below`."""
    axis, sign = RELATION_AXES[relation]
    return sign * (box[axis + 2 * (sign > 0)] - thing.center[axis]) > 0


def gap(thing: Thing, box: Box, size: tuple[int, int]) -> float:
    """Return how far a box is from a thing's middle in pixels, in a picture of this width and height."""
    away = [max(0.0, box[axis] - thing.center[axis], thing.center[axis] - box[axis + 2]) for axis in (0, 1)]
    return math.hypot(away[0] * size[0], away[1] * size[1])


def crosses(box: Box, a: Thing, b: Thing) -> bool:
    """Return whether the line from one thing's middle to another's goes through a box, or closely past it."""
    line = [
        [start + (end - start) * at / 20 for start, end in zip(a.center, b.center, strict=True)] for at in range(21)
    ]
    return any(all(box[axis] - 0.05 < point[axis] < box[axis + 2] + 0.05 for axis in (0, 1)) for point in line)


def caption_of(scene: VariedScene) -> str:
    """List the things from left to right and what is written: `a red circle and an outlined blue star`."""
    text = enumerated([with_article(described(thing)) for thing in scene.things])
    if scene.writing is None:
        return text
    return f"{text} and the {'number' if scene.writing.text.isdigit() else 'word'} {scene.writing.text}"


def described(thing: Thing) -> str:
    return f"outlined {thing.name}" if thing.style == "outlined" else thing.name


def names_of(thing: Thing) -> tuple[str, ...]:
    """Return every right short name of a thing, the fullest first."""
    kinds = (thing.kind, *SHAPE_OTHERS[thing.kind])
    colors = (thing.color, *PALETTE[thing.color].others)
    styles = ("", f"{thing.style} ", *(f"{other} " for other in STYLE_OTHERS[thing.style]))
    pairs = [f"{style}{color} {kind}" for style in styles for color in colors for kind in kinds]
    return (*pairs, *(f"{style}{kind}" for style in styles for kind in kinds))


_WORDS = {word: str(number) for number, word in enumerate(NUMBERS)}
_SPELLING = {"colour": "color", "colours": "colors", "centre": "center", "grey": "gray"}
_DROPPED = frozenset("a an the it is its i see there are and of".split())


def is_right(fact: Fact, reply: str) -> bool:
    """Return whether a short reply or a sentence answers the question. Case, articles, marks and spelling are free; a
    list may have any order."""
    if fact.parts:
        return _listed(fact, reply)
    if fact.kind == "letter":  # `a` and `i` are letters here, and no small words
        return re.findall(r"[a-z0-9]+", reply.lower())[-1:] == [fact.answers[0]]
    key = _key(reply)
    if any(key == _key(answer) for answer in (*fact.answers, fact.sentence)):
        return True
    return fact.answers[0] in ("yes", "no") and key.split(" ")[:1] == [fact.answers[0]]


def _key(text: str) -> str:
    split = re.findall(r"[a-z0-9']+", text.lower())
    return " ".join(_WORDS.get(word, _SPELLING.get(word, word)) for word in split if word not in _DROPPED)


def _listed(fact: Fact, reply: str) -> bool:
    """Return whether a reply names exactly the parts: things as `red circle`, else shapes or colours."""
    reply_words = [_SPELLING.get(word, word) for word in re.findall(r"[a-z]+", reply.lower())]
    names: list[str] = []
    color = ""
    text = " ".join(reply_words)
    for match in re.finditer(_NAME, text):
        word = match[0]
        if word in COLOR_NAMES:
            color = COLOR_NAMES[word]
            if fact.kind in ("colors", "colors_of_kind"):
                names.append(color)
        else:
            kind = _SHAPES[word]
            if fact.kind == "everything":
                names.append(f"{color} {kind}")
            elif fact.kind in ("kinds", "kinds_of_color"):
                names.append(kind)
    return sorted(names) == sorted(fact.parts)


_SHAPES = {form: name for word, name in SHAPE_NAMES.items() for form in (word, plural_name(word))}
_NAME = r"\b(?:" + "|".join(sorted((*COLOR_NAMES, *_SHAPES), key=len, reverse=True)) + r")\b"
