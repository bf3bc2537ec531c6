"""The questions of a check: boxes, facts and words of drawn scenes, with their true answers."""

import functools
import io
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serve.models.contracts import Size
from serve.models.probing import Pixels
from serve.toy import questions, world
from serve.toy.probe_scenes import probe_scenes
from serve.toy.world import Scene

LABELS = 2
"""The most shapes of a picture that are asked for, each in a request of its own: so a box without a label has one."""
WORDS = 8
"""The number of words to be read."""
KINDS = tuple(kind for kind in questions.KINDS if kind != "where")
"""The kinds of facts. Places have too many right names."""
SCALE = 2.0


@dataclass(frozen=True)
class CheckQuestion:
    """A question. fields: of the task's request, without the image. truth: the answer, or for detect the box in pixels
    of the picture. size: width and height of the picture, which `load` draws, as a PNG."""

    task: str
    fields: Mapping[str, Any]
    truth: str | Pixels
    size: Size
    load: Callable[[], bytes]


@functools.lru_cache(maxsize=64)
def check_questions(task: str, seed: int) -> tuple[CheckQuestion, ...]:
    """Return the questions of a task, the same for a seed; none for a task that is not checked."""
    by_task = {"detect": _boxes, "vqa": _facts, "ocr": _words}
    return tuple(by_task[task](seed)) if task in by_task else ()


def _boxes(seed: int) -> list[CheckQuestion]:
    return [
        CheckQuestion("detect", {"labels": [label]}, box, scene.size, functools.partial(_png, scene.scene, scene.scale))
        for scene in probe_scenes(seed)
        for label, box in scene.boxes[:LABELS]
    ]


def _facts(seed: int) -> list[CheckQuestion]:
    """Ask about two pictures with the same words, whose answers differ: without the picture at most half are right."""
    rng = random.Random(f"facts {seed}")
    return [question for kind in KINDS for question in _pair(kind, rng)]


def _pair(kind: str, rng: random.Random) -> Sequence[CheckQuestion]:
    first: dict[str, CheckQuestion] = {}
    for scene in _scenes(rng):
        fact = questions.vqa(scene, kind, rng)
        if fact is not None:
            question = _question("vqa", scene, {"question": fact.text}, fact.answer)
            other = first.setdefault(fact.text, question)
            if other.truth != question.truth:
                return other, question
    raise AssertionError("there is always another scene")


def _words(seed: int) -> list[CheckQuestion]:
    """Ask for the words of pictures, each word once."""
    rng = random.Random(f"words {seed}")
    by_word: dict[str, CheckQuestion] = {}
    for scene in _scenes(rng, text=True):
        by_word.setdefault(scene.text, _question("ocr", scene, {}, scene.text))
        if len(by_word) == WORDS:
            break
    return list(by_word.values())


def _scenes(rng: random.Random, text: bool | None = None) -> Iterator[Scene]:
    while True:
        yield world.scene(rng.randrange(2**32), text=text)


def _question(task: str, scene: Scene, fields: Mapping[str, Any], truth: str) -> CheckQuestion:
    width, height = scene.size
    size = round(width * SCALE), round(height * SCALE)
    return CheckQuestion(task, fields, truth, size, functools.partial(_png, scene, SCALE))


@functools.lru_cache(maxsize=64)  # all pictures of a check, about 2 MB: several models are shown the same
def _png(scene: Scene, scale: float) -> bytes:
    out = io.BytesIO()
    world.draw(scene, scale).save(out, "PNG", compress_level=1)
    return out.getvalue()
