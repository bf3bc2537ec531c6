"""What can be asked about a scene, and the true answer."""

import random
from dataclasses import dataclass

from serve.toy.world import COLORS, SHAPES, Box, Scene, Shape

KINDS = ("color", "shape", "count", "count_kind", "exists", "background", "where")
"""The question types of visual question answering."""


@dataclass(frozen=True)
class Question:
    """`text` is the question (vqa, chat) or the phrases (detect, segment); `answer` the words, or `boxes` where."""

    task: str
    kind: str
    text: str
    answer: str = ""
    boxes: tuple[tuple[str, Box], ...] = ()


def article(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def listing(scene: Scene) -> str:
    """`a red circle, a blue star and an orange cross`, from left to right."""
    names = [article(shape.name) for shape in scene.shapes]
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def caption(scene: Scene) -> str:
    if not scene.text:
        return listing(scene)
    return f"{listing(scene)} and the {'number' if scene.text.isdigit() else 'word'} {scene.text}"


def matching(scene: Scene, phrase: str) -> list[Shape]:
    """The shapes a phrase (`circle`, `red circle`) means, from left to right."""
    return [shape for shape in scene.shapes if phrase in (shape.kind, shape.name)]


def phrases(scene: Scene, unique: bool = False) -> list[str]:
    """Phrases that mean at least one shape; `unique`: exactly one."""
    named = dict.fromkeys(phrase for shape in scene.shapes for phrase in (shape.name, shape.kind))
    return [phrase for phrase in named if not unique or len(matching(scene, phrase)) == 1]


def detect(scene: Scene, asked: list[str]) -> Question:
    """Every place of every phrase, phrase by phrase, each from left to right."""
    found = tuple((phrase, shape.box) for phrase in asked for shape in matching(scene, phrase))
    return Question("detect", "boxes", " ; ".join(asked), boxes=found)


def segment(scene: Scene, asked: list[str]) -> Question:
    """The same, with masks."""
    return Question("segment", "masks", " ; ".join(asked), boxes=detect(scene, asked).boxes)


def absent(scene: Scene, rng: random.Random, task: str) -> Question:
    """Detect or segment something that is not there: nothing to say."""
    return Question(task, "absent", _absent(scene, rng))


def quadrant(box: Box) -> str | None:
    """`top left` and so on, or None for a box too near a middle line to say."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    if min(abs(x - 0.5), abs(y - 0.5)) < 0.08:
        return None
    return f"{'top' if y < 0.5 else 'bottom'} {'left' if x < 0.5 else 'right'}"


def vqa(scene: Scene, kind: str, rng: random.Random) -> Question | None:
    """A question of this type with one right answer, or None where the scene allows none."""
    if kind == "count":
        return Question("vqa", kind, "How many shapes are there?", str(len(scene.shapes)))
    if kind == "background":
        return Question("vqa", kind, "What color is the background?", scene.background)
    if kind == "count_kind":
        return _count(scene, rng.choice(SHAPES if rng.random() < 0.3 else [shape.kind for shape in scene.shapes]))
    if kind == "exists":
        phrase = _present(scene, rng) if rng.random() < 0.5 else _absent(scene, rng)
        return Question("vqa", kind, f"Is there {article(phrase)}?", "yes" if matching(scene, phrase) else "no")
    if kind == "color":
        kinds = [shape.kind for shape in scene.shapes if len(matching(scene, shape.kind)) == 1]
        if not kinds:
            return None
        name = rng.choice(kinds)
        return Question("vqa", kind, f"What color is the {name}?", matching(scene, name)[0].color)
    if kind == "shape":
        colors = [shape.color for shape in scene.shapes]
        single = [shape for shape in scene.shapes if colors.count(shape.color) == 1]
        if not single:
            return None
        shape_ = rng.choice(single)
        return Question("vqa", kind, f"What shape is the {shape_.color} object?", shape_.kind)
    if kind == "where":
        places = [(phrase, quadrant(matching(scene, phrase)[0].box)) for phrase in phrases(scene, unique=True)]
        sure = [(phrase, place) for phrase, place in places if place is not None]
        if not sure:
            return None
        phrase, place = rng.choice(sure)
        return Question("vqa", kind, f"Where is the {phrase}?", place)
    raise ValueError(f"unknown question type {kind!r}; known: {', '.join(KINDS)}")


def repeats(scene: Scene, rng: random.Random) -> Question | None:
    """How many there are of a shape that is there more than once, which is what counting is about; else None."""
    kinds = [shape.kind for shape in scene.shapes]
    several = sorted({kind for kind in kinds if kinds.count(kind) > 1})
    return _count(scene, rng.choice(several)) if several else None


def _count(scene: Scene, shape: str) -> Question:
    plural = "crosses" if shape == "cross" else f"{shape}s"
    return Question("vqa", "count_kind", f"How many {plural} are there?", str(len(matching(scene, shape))))


def _present(scene: Scene, rng: random.Random) -> str:
    shape = rng.choice(scene.shapes)
    return rng.choice((shape.kind, shape.name))


def _absent(scene: Scene, rng: random.Random) -> str:
    """A phrase nothing matches. Half are hard: a shape that is there, in the colour of another or of none."""
    while True:
        if rng.random() < 0.3:
            phrase = rng.choice(SHAPES)
        elif rng.random() < 0.7:
            kind, color = rng.choice(scene.shapes).kind, rng.choice(scene.shapes).color
            if rng.random() < 0.5:
                color = rng.choice(tuple(COLORS))
            elif rng.random() < 0.5:
                kind = rng.choice(SHAPES)
            phrase = f"{color} {kind}"
        else:
            phrase = f"{rng.choice(tuple(COLORS))} {rng.choice(SHAPES)}"
        if not matching(scene, phrase):
            return phrase


ASK_ALL = ("Describe the picture.", "What do you see?", "What is in the picture?", "Describe this image.",
           "What is in the image?", "What is shown in this picture?")  # fmt: skip


def chat(scene: Scene, rng: random.Random) -> Question:
    """An open question and a whole sentence for an answer."""
    if rng.random() < 0.35:
        return Question("chat", "describe", rng.choice(ASK_ALL), f"I see {caption(scene)}.")
    if scene.text and rng.random() < 0.3:
        asked = rng.choice(("What does it say?", "What is written in the image?", "Read the text."))
        return Question("chat", "sentence", asked, f"It says {scene.text}.")
    asked_ = vqa(scene, rng.choice(KINDS), rng)
    if asked_ is None:
        return Question("chat", "describe", rng.choice(ASK_ALL), f"I see {caption(scene)}.")
    words, answer = asked_.text.rstrip("?").split(), asked_.answer
    thing = " ".join(words[3:])
    sentence = {
        "color": f"The {thing[4:]} is {answer}.",
        "background": f"The background is {answer}.",
        "shape": f"The {thing[4:]} is {article(answer)}.",
        "where": f"The {' '.join(words[3:])} is at the {answer}.",
        "count": f"There {'is' if answer == '1' else 'are'} {answer} {'shape' if answer == '1' else 'shapes'}.",
        "count_kind": f"There {'is' if answer == '1' else 'are'} {answer} "
        + (_singular(words[2]) if answer == "1" else words[2]) + ".",
        "exists": f"Yes, there is {' '.join(words[2:])}." if answer == "yes" else f"No, there is no {thing}.",
    }[asked_.kind]  # fmt: skip
    return Question("chat", "sentence", asked_.text, sentence)


def _singular(plural: str) -> str:
    return "cross" if plural == "crosses" else plural.removesuffix("s")


def as_typed(text: str, rng: random.Random) -> str:
    """The same question the way somebody else might type it."""
    if rng.random() < 0.4:
        text = text[0].lower() + text[1:]
    ending = text[-1] if text[-1] in "?." else ""
    body = text.removesuffix(ending)
    if body.lower().startswith(("how many", "is there")) and rng.random() < 0.2:
        body += rng.choice((" in the image", " in the picture"))
    if rng.random() < 0.1:
        body = body.replace("color", "colour")
    return body if rng.random() < 0.25 else body + ending
