"""Varied scenes as a labelled set, asked in the second language: no toy has been trained on a picture or sentence."""

import functools
import random
from collections.abc import Collection, Iterator

from serve.client.evaluation.items import Item, Json, png_bytes
from serve.media import masks
from serve.tasks import TASKS
from serve.toy.varied import exam, grammar
from serve.toy.varied.facts import caption_of
from serve.toy.varied.scenes import VariedScene, installed_fonts, render, seen_mask, varied_scene

QUESTIONS = ("vqa", "caption", "ocr", "detect", "segment", "chat")
"""The tasks with questions."""


def varied_items(task: str, count: int, seed: int) -> Iterator[Item]:
    """Yield `count` items of a task, vqa and chat by kinds of questions in turn; the same ones for the same seed."""
    fonts = installed_fonts()
    if task in ("vqa", "chat"):
        for number, question in enumerate(exam.exam_questions(count, seed, fonts)):
            fact = question.fact
            answers = fact.answers if task == "vqa" else (fact.sentence,)
            truth = {"accepted" if task == "vqa" else "answers": list(answers), "kind": fact.kind}
            yield _item(task, question.scene, seed + number, {"question": question.text}, truth)
        return
    at = exam.FRESH + seed
    for number in range(count):
        while (pair := _question_about(task, varied_scene(at, writing=task == "ocr" or None, fonts=fonts))) is None:
            at += 1
        yield _item(task, pair[0], seed + number, *pair[1:])
        at += 1


def all_varied_items(names: Collection[str], count: int, seed: int) -> list[Item]:
    """Return the items of these tasks, task by task, `count` of each."""
    return [item for task in TASKS if task in names and task in QUESTIONS for item in varied_items(task, count, seed)]


def _item(task: str, scene: VariedScene, number: int, fields: Json, truth: Json) -> Item:
    return Item(
        name=f"varied/{task}/{number}",
        picture=f"varied/{'text/' * (task == 'ocr')}{scene.seed}",
        task=task,
        fields=fields,
        truth=truth,
        load=functools.partial(_png, scene),
    )


def _question_about(task: str, scene: VariedScene) -> tuple[VariedScene, Json, Json] | None:
    """Return the scene with a request's fields and the true answer, or None where it gives no question."""
    if task == "caption":
        return scene, {}, {"captions": [caption_of(scene)], "shapes": [thing.name for thing in scene.things]}
    if task == "ocr":
        assert scene.writing is not None
        return scene, {}, {"text": scene.writing.text}
    pair = grammar.located(scene, random.Random(f"varied {scene.seed}"), single=False, wording=exam.EXAM)
    if pair is None:
        return None
    phrase, things = pair
    width, height = scene.size
    boxes: list[Json] = []
    for thing in things:
        x0, y0, x1, y1 = thing.box
        box: Json = {"label": phrase, "box": [x0 * width, y0 * height, x1 * width, y1 * height]}
        if task == "segment":
            box["mask"] = masks.encode(seen_mask(scene, scene.things.index(thing), scene.size)).model_dump()
        boxes.append(box)
    return scene, {"labels": [phrase]}, {"boxes": boxes}


def _png(scene: VariedScene) -> bytes:
    return png_bytes(render(scene))
