"""Questions about a scene, with their true answers."""

import random
from dataclasses import dataclass

from serve.toy.varied.names import enumerated, with_article
from serve.toy.world import COLORS, SHAPES, Box, Scene, Shape

KINDS = ("color", "shape", "count", "count_kind", "exists", "background", "where")
"""The question types of visual question answering."""


@dataclass(frozen=True)
class Question:
    """A question for one task. text: the question (vqa, chat) or phrases joined by ` ; ` (detect, segment).
    answer: the true text. boxes: the true (phrase, box) pairs of detect and segment. codes: of each box's mask; without
    them each mask is its phrase's whole shape. meant: phrases that mean one thing, with its box; those that are in the
    text as they are help to train. named: where in the answer one thing's name begins, with its box. counts: phrases
    with the number of things that each means. about: shape and colour of the things that the answer is about, or
    None."""

    task: str
    kind: str
    text: str
    answer: str = ""
    boxes: tuple[tuple[str, Box], ...] = ()
    codes: tuple[tuple[int, ...], ...] = ()
    meant: tuple[tuple[str, Box], ...] = ()
    named: tuple[tuple[int, Box], ...] = ()
    counts: tuple[tuple[str, int], ...] = ()
    about: tuple[tuple[str, str], ...] | None = None


def listing(scene: Scene) -> str:
    """List the shapes from left to right: `a red circle, a blue star and an orange cross`."""
    return enumerated([with_article(shape.name) for shape in scene.shapes])


def caption(scene: Scene) -> str:
    if not scene.text:
        return listing(scene)
    return f"{listing(scene)} and the {'number' if scene.text.isdigit() else 'word'} {scene.text}"


def matching(scene: Scene, phrase: str) -> list[Shape]:
    """Return the shapes that a phrase (`circle`, `red circle`) matches, from left to right."""
    return [shape for shape in scene.shapes if phrase in (shape.kind, shape.name)]


def phrases(scene: Scene, unique: bool = False) -> list[str]:
    """Return the phrases that match at least one shape; unique: exactly one."""
    known = dict.fromkeys(phrase for shape in scene.shapes for phrase in (shape.name, shape.kind))
    return [phrase for phrase in known if not unique or len(matching(scene, phrase)) == 1]


def detect(scene: Scene, wanted: list[str]) -> Question:
    """Ask for the boxes of these phrases. The answer has them phrase by phrase, each from left to right."""
    boxes = tuple((phrase, shape.box) for phrase in wanted for shape in matching(scene, phrase))
    return Question("detect", "boxes", " ; ".join(wanted), boxes=boxes)


def absent(scene: Scene, rng: random.Random, task: str) -> Question:
    """Ask to detect or segment a thing that is not in the scene; the true answer is empty."""
    return Question(task, "absent", _absent(scene, rng))


def quadrant(box: Box) -> str | None:
    """Return `top left`, `bottom right` and so on, or None for a box too near a middle line."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    if min(abs(x - 0.5), abs(y - 0.5)) < 0.08:
        return None
    return f"{'top' if y < 0.5 else 'bottom'} {'left' if x < 0.5 else 'right'}"


def vqa(scene: Scene, kind: str, rng: random.Random) -> Question | None:
    """Make a question of a type in KINDS with one right answer, or None if the scene allows none."""
    if kind == "count":
        return Question("vqa", kind, "How many shapes are there?", str(len(scene.shapes)))
    if kind == "background":
        return Question("vqa", kind, "What color is the background?", scene.background)
    if kind == "count_kind":
        return how_many(scene, rng.choice(SHAPES if rng.random() < 0.3 else [shape.kind for shape in scene.shapes]))
    if kind == "exists":
        phrase = _present(scene, rng) if rng.random() < 0.5 else _absent(scene, rng)
        return Question("vqa", kind, f"Is there {with_article(phrase)}?", "yes" if matching(scene, phrase) else "no")
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
        shape = rng.choice(single)
        return Question("vqa", kind, f"What shape is the {shape.color} object?", shape.kind)
    if kind == "where":
        places = [(phrase, quadrant(matching(scene, phrase)[0].box)) for phrase in phrases(scene, unique=True)]
        clear = [(phrase, place) for phrase, place in places if place is not None]
        if not clear:
            return None
        phrase, place = rng.choice(clear)
        return Question("vqa", kind, f"Where is the {phrase}?", place)
    raise ValueError(f"unknown question type {kind!r}; known: {', '.join(KINDS)}")


def how_many(scene: Scene, shape: str) -> Question:
    """Ask how many shapes of a kind there are."""
    plural = "crosses" if shape == "cross" else f"{shape}s"
    return Question("vqa", "count_kind", f"How many {plural} are there?", str(len(matching(scene, shape))))


def _present(scene: Scene, rng: random.Random) -> str:
    shape = rng.choice(scene.shapes)
    return rng.choice((shape.kind, shape.name))


def _absent(scene: Scene, rng: random.Random) -> str:
    """Pick a phrase that matches no shape. Half are hard: a present kind or colour in a new combination."""
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


OPEN_QUESTIONS = ("Describe the picture.", "What do you see?", "What is in the picture?", "Describe this image.",
                  "What is in the image?", "What is shown in this picture?")  # fmt: skip


def chat(scene: Scene, rng: random.Random) -> Question:
    """Make an open question, or one of `vqa`, with a whole sentence as its answer."""
    if rng.random() < 0.35:
        return Question("chat", "describe", rng.choice(OPEN_QUESTIONS), f"I see {caption(scene)}.")
    if scene.text and rng.random() < 0.3:
        text = rng.choice(("What does it say?", "What is written in the image?", "Read the text."))
        return Question("chat", "sentence", text, f"It says {scene.text}.")
    question = vqa(scene, rng.choice(KINDS), rng)
    if question is None:
        return Question("chat", "describe", rng.choice(OPEN_QUESTIONS), f"I see {caption(scene)}.")
    asked_words, answer = question.text.rstrip("?").split(), question.answer
    thing = " ".join(asked_words[3:])
    sentence = {
        "color": f"The {thing[4:]} is {answer}.",
        "background": f"The background is {answer}.",
        "shape": f"The {thing[4:]} is {with_article(answer)}.",
        "where": f"The {' '.join(asked_words[3:])} is at the {answer}.",
        "count": f"There {'is' if answer == '1' else 'are'} {answer} {'shape' if answer == '1' else 'shapes'}.",
        "count_kind": f"There {'is' if answer == '1' else 'are'} {answer} "
        + (_singular(asked_words[2]) if answer == "1" else asked_words[2]) + ".",
        "exists": f"Yes, there is {' '.join(asked_words[2:])}." if answer == "yes" else f"No, there is no {thing}.",
    }[question.kind]  # fmt: skip
    return Question("chat", "sentence", question.text, sentence)


def _singular(plural: str) -> str:
    return "cross" if plural == "crosses" else plural.removesuffix("s")
