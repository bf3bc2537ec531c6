"""Freshly drawn scenes as a labelled set: none of them was trained on."""

import functools
import random
from collections.abc import Callable, Collection, Iterator, Mapping

from serve.client.evaluation.items import Item, Json, png_bytes
from serve.media import masks
from serve.tasks import TASKS
from serve.toy import questions, world
from serve.toy.masks import mask
from serve.toy.questions import Question
from serve.toy.world import SHAPES, Scene

FRESH = 20_000_000
"""Seeds below ten million are trained on, those from there are the training's own held-out scenes."""
SCALE = 2.0


def items(task: str, count: int, seed: int) -> Iterator[Item]:
    """Yield a question of a task about each of `count` scenes; the same ones for the same seed."""
    for at in range(seed, seed + count):
        scene = world.scene(FRESH + at, text=True if task == "ocr" else None)
        fields, truth = QUESTIONS[task](scene, at, random.Random(f"evaluate {task} {at}"))
        yield Item(
            name=f"toy/{task}/{FRESH + at}",
            picture=f"toy/{'text/' * (task == 'ocr')}{FRESH + at}",
            task=task,
            fields=fields,
            truth=truth,
            load=functools.partial(_png, scene),
        )


def everything(names: Collection[str], count: int, seed: int) -> list[Item]:
    """Return the items of these tasks, task by task, `count` of each."""
    return [item for task in TASKS if task in names and task in QUESTIONS for item in items(task, count, seed)]


def _vqa(scene: Scene, at: int, rng: random.Random) -> tuple[Json, Json]:
    """Ask by kinds of questions in turn, where the scene allows the kind."""
    turn = at % len(questions.KINDS)
    for kind in questions.KINDS[turn:] + questions.KINDS[:turn]:
        if (question := questions.vqa(scene, kind, rng)) is not None:
            return _answered(question)
    raise AssertionError("how many shapes there are can always be asked")


def _chat(scene: Scene, at: int, rng: random.Random) -> tuple[Json, Json]:
    return _answered(questions.chat(scene, rng))


def _answered(question: Question) -> tuple[Json, Json]:
    return {"question": question.text}, {"answers": [question.answer], "kind": question.kind}


def _caption(scene: Scene, at: int, rng: random.Random) -> tuple[Json, Json]:
    return {}, {"captions": [questions.caption(scene)], "shapes": [shape.name for shape in scene.shapes]}


def _ocr(scene: Scene, at: int, rng: random.Random) -> tuple[Json, Json]:
    return {}, {"text": scene.text}


def _detect(scene: Scene, at: int, rng: random.Random, masked: bool = False) -> tuple[Json, Json]:
    """Ask for one or two phrases. masked: the true boxes have masks."""
    present = questions.phrases(scene)
    phrases = rng.sample(present, min(len(present), rng.choice((1, 2))))
    width, height = size = (round(scene.size[0] * SCALE), round(scene.size[1] * SCALE))
    boxes = []
    for phrase in phrases:
        for shape in questions.matching(scene, phrase):
            x0, y0, x1, y1 = shape.box
            box = [round(v, 2) for v in (x0 * width, y0 * height, x1 * width, y1 * height)]
            drawn = {"mask": masks.encode(mask(scene, shape, size)).model_dump()} if masked else {}
            boxes.append({"label": phrase, "box": box, **drawn})
    return {"labels": phrases}, {"boxes": boxes}


def _count(scene: Scene, at: int, rng: random.Random) -> tuple[Json, Json]:
    """Ask for a kind of shape, as the toys were trained to count: one that is there, or any."""
    kind = rng.choice(SHAPES if rng.random() < 0.3 else [shape.kind for shape in scene.shapes])
    question = questions.how_many(scene, kind)
    return {"question": question.text}, {"count": int(question.answer)}


def _classify(scene: Scene, at: int, rng: random.Random) -> tuple[Json, Json]:
    """Ask which of four things is there; for every second scene which are, of up to two that are and others."""
    multiple = at % 2 == 1
    present = questions.phrases(scene)
    right = rng.sample(present, min(len(present), 2 if multiple else 1))
    others: list[str] = []
    while len(others) + len(right) < 4:
        phrase = questions.absent(scene, rng, "classify").text
        others += [phrase] if phrase not in others else []
    labels = rng.sample([*right, *others], 4)
    return {"labels": labels, "multiple": multiple}, {"labels": right}


QUESTIONS: Mapping[str, Callable[[Scene, int, random.Random], tuple[Json, Json]]] = {
    "vqa": _vqa,
    "caption": _caption,
    "ocr": _ocr,
    "detect": _detect,
    "segment": functools.partial(_detect, masked=True),
    "point": _detect,
    "count": _count,
    "classify": _classify,
    "chat": _chat,
}
"""By task, (scene, its number, random numbers) -> (fields of the request, true answer). A task without is left out."""


def _png(scene: Scene) -> bytes:
    return png_bytes(world.draw(scene, SCALE))
