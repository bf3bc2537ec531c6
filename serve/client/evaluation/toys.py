"""Freshly drawn scenes as a labelled set: none of them was trained on."""

import functools
import io
import random
from collections.abc import Iterator

from serve.client.evaluation.items import TASKS, Item, Json
from serve.media import masks
from serve.toy import questions, world
from serve.toy.masks import mask
from serve.toy.questions import Question
from serve.toy.world import Scene

FRESH = 20_000_000
"""Seeds below ten million are trained on, those from there are the training's own held-out scenes."""
SCALE = 2.0


def items(task: str, count: int, seed: int) -> Iterator[Item]:
    """One question of a task about each of `count` scenes, from `seed` on; always the same ones."""
    for at in range(seed, seed + count):
        what = world.scene(FRESH + at, text=True if task == "ocr" else None)
        asked = _question(task, what, at)
        fields: Json = {"vqa": {"question": asked.text}, "chat": {"question": asked.text}}.get(task, {})
        if task in ("detect", "segment"):
            fields = {"labels": asked.text.split(" ; ")}
        yield Item(
            name=f"toy/{task}/{FRESH + at}",
            picture=f"toy/{'text/' * (task == 'ocr')}{FRESH + at}",
            task=task,
            fields=fields,
            truth=_truth(task, what, asked),
            load=functools.partial(_drawn, what),
        )


def _question(task: str, what: Scene, at: int) -> Question:
    """Kinds of questions take turns where the scene allows it; one or two phrases to find."""
    rng = random.Random(f"evaluate {task} {at}")
    if task == "chat":
        return questions.chat(what, rng)
    if task == "caption":
        return Question(task, "", "", questions.caption(what))
    if task == "ocr":
        return Question(task, "", "", what.text)
    if task in ("detect", "segment"):
        there = questions.phrases(what)
        return questions.detect(what, rng.sample(there, min(len(there), rng.choice((1, 2)))))
    turn = at % len(questions.KINDS)
    for kind in questions.KINDS[turn:] + questions.KINDS[:turn]:
        if (asked := questions.vqa(what, kind, rng)) is not None:
            return asked
    raise AssertionError("how many shapes there are can always be asked")


def _truth(task: str, what: Scene, asked: Question) -> Json:
    if task == "caption":
        return {"captions": [asked.answer], "shapes": [shape.name for shape in what.shapes]}
    if task == "ocr":
        return {"text": asked.answer}
    if task in ("vqa", "chat"):
        return {"answers": [asked.answer], "kind": asked.kind}
    width, height = size = (round(what.size[0] * SCALE), round(what.size[1] * SCALE))
    boxes = []
    for phrase in asked.text.split(" ; "):
        for shape in questions.matching(what, phrase):
            x0, y0, x1, y1 = shape.box
            box = [round(v, 2) for v in (x0 * width, y0 * height, x1 * width, y1 * height)]
            drawn = {"mask": masks.encode(mask(what, shape, size)).model_dump()} if task == "segment" else {}
            boxes.append({"label": phrase, "box": box, **drawn})
    return {"boxes": boxes}


def _drawn(what: Scene) -> bytes:
    out = io.BytesIO()
    world.draw(what, SCALE).save(out, "PNG", compress_level=1)
    return out.getvalue()


def everything(tasks: tuple[str, ...] | list[str], count: int, seed: int) -> list[Item]:
    """All tasks' items, task by task."""
    return [item for task in TASKS if task in tasks for item in items(task, count, seed)]
