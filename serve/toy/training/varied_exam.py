"""Measure a toy of varied scenes: `python -m serve.toy.training.varied_exam varied-llava FOLDER`.

It asks the 2,000 questions of the second language (serve/toy/varied/exam.py), by kind, and boxes, masks, captions and
reading on as many fresh scenes as --n says, through transformers and the checkpoint's own processor.
"""

import argparse
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
import torch
import transformers
from rapidfuzz.distance import Levenshtein

from serve.engines.vllm.torchvision import repair
from serve.media.masks import Mask
from serve.toy import world
from serve.toy.questions import Question
from serve.toy.training import album, evaluate
from serve.toy.training.evaluate import Reference, Score
from serve.toy.training.recipes import VARIED
from serve.toy.training.varied_lessons import CODES
from serve.toy.varied import exam, grammar
from serve.toy.varied.facts import KINDS, Fact, caption_of, is_right
from serve.toy.varied.scenes import Thing, VariedScene, as_varied, installed_fonts, render, seen_mask, varied_scene

OTHER_SCENES = 5_000_000
"""Scenes for boxes, masks, captions and reading start so far after those of the questions."""


@dataclass(frozen=True)
class VariedItem:
    """A question about a scene with what its reply is judged by: a fact, or true masks."""

    scene: VariedScene
    question: Question
    fact: Fact | None = None
    masks: tuple[Mask, ...] = ()


def vqa_items(count: int, seed: int) -> list[VariedItem]:
    drawn = exam.exam_questions(count, seed, installed_fonts())
    return [VariedItem(q.scene, Question("vqa", q.fact.kind, q.text, q.fact.answers[0]), q.fact) for q in drawn]


def other_items(family: str, count: int, seed: int) -> Iterator[VariedItem]:
    """Yield for each of `count` scenes a caption, a phrase to detect and to segment, and text to read."""
    for at in range(exam.FRESH + OTHER_SCENES + seed, exam.FRESH + OTHER_SCENES + seed + count):
        rng = random.Random(f"exam places {at}")
        scene = varied_scene(at, fonts=installed_fonts())
        yield VariedItem(scene, Question("caption", "caption", "", caption_of(scene)))
        pair = grammar.located(scene, rng, single=family == "llava", wording=exam.EXAM)
        if pair is not None:
            yield _located_item("detect", scene, *pair)
            if family == "paligemma":
                yield _located_item("segment", scene, *pair)
        written = varied_scene(at, writing=True, fonts=installed_fonts())
        text = written.writing.text if written.writing is not None else ""
        yield VariedItem(written, Question("ocr", "number" if text.isdigit() else "word", "", text))


def shipped_items(family: str, times: int) -> Iterator[VariedItem]:
    """Yield for each shipped scene every kind of question that it allows, in `times` wordings of either language, a
    caption, what is written, and each thing by its name and by other phrases."""
    for seed in album.SEEDS.values():
        rng, scene = random.Random(seed), as_varied(world.scene(seed))
        for kind, wording in itertools.product(KINDS, (grammar.TRAINING, exam.EXAM) * times):
            pair = grammar.phrased(scene, kind, rng, wording)
            if pair is not None:
                yield VariedItem(scene, Question("vqa", kind, pair[0], pair[1].answers[0]), pair[1])
        yield VariedItem(scene, Question("caption", "caption", "", caption_of(scene)))
        yield VariedItem(scene, Question("ocr", "ocr", "", scene.writing.text if scene.writing else "nothing"))
        for task in ("detect", "segment")[: 1 + (family == "paligemma")]:
            for wording in (grammar.TRAINING, exam.EXAM) * 2 * times:
                located = grammar.located(scene, rng, single=family == "llava", wording=wording)
                if located is not None:
                    yield _located_item(task, scene, *located)


def _located_item(task: str, scene: VariedScene, phrase: str, things: list[Thing]) -> VariedItem:
    boxes = tuple((phrase, thing.box) for thing in things)
    kind = "one thing" if len(things) == 1 else "several"
    masks = tuple(seen_mask(scene, scene.things.index(thing), scene.size) for thing in things)
    codes = tuple(CODES[thing.kind] for thing in things) if task == "segment" else ()
    return VariedItem(scene, Question(task, kind, phrase, boxes=boxes, codes=codes), masks=masks)


def scored(family: str, items: list[VariedItem], replies: list[str], folder: Path) -> dict[str, Score]:
    """Return scores per task: right answers, true boxes found, the mean IoU of masks; of ocr the share of letters that
    are right, which is 100 less the character error rate."""
    scores: dict[str, Score] = {}
    for item, reply in zip(items, replies, strict=True):
        scene, question = item.scene, item.question
        score = scores.setdefault(question.task, Score())
        if item.fact is not None:
            score.add(question.kind, is_right(item.fact, reply))
        elif question.task == "detect":
            parsed = (
                evaluate.parse_brackets(reply, scene, question) if family == "llava" else evaluate.parse_locs(reply)
            )
            score.add(question.kind, evaluate.count_recalled(question.boxes, parsed), len(question.boxes))
        elif question.task == "segment":
            drawn = evaluate.parse_masks(reply, scene.size, folder)
            score.add(question.kind, evaluate.matched_iou(list(item.masks), drawn), len(question.boxes))
        elif question.task == "ocr":
            wrong = min(len(question.answer), Levenshtein.distance(reply, question.answer))
            score.add(question.kind, len(question.answer) - wrong, len(question.answer))
        else:
            score.add("", reply == question.answer)
    return scores


def _shipped_picture(scene: VariedScene) -> PIL.Image.Image:
    return album.picture(world.scene(scene.seed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("toy", choices=sorted(VARIED))
    parser.add_argument("folder", type=Path, help="the exported checkpoint")
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--n", type=int, default=300, help="scenes for the other tasks")
    parser.add_argument("--seed", type=int, default=0, help="which fresh scenes")
    parser.add_argument("--shipped", type=int, metavar="N", help="ask N times about the shipped scenes instead")
    parser.add_argument("--wrong", action="store_true", help="print each wrong answer of vqa")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    repair()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    family = VARIED[options.toy].family
    if options.shipped:
        items, draw = [*shipped_items(family, options.shipped)], _shipped_picture
    else:
        items = [*vqa_items(options.questions, options.seed), *other_items(family, options.n, options.seed)]
        draw = render
    reference = Reference(family, options.folder, options.device, draw)
    replies = reference.answers([(item.scene, item.question) for item in items])
    for item, reply in zip(items, replies, strict=True):
        if options.wrong and item.fact is not None and not is_right(item.fact, reply):
            print(f"{item.scene.seed} {item.question.text} -> {reply}, in place of {item.fact.answers[0]}")
    for task, score in scored(family, items, replies, options.folder).items():
        print(f"{task:<28}{score.total:>6}{score.percent:>7.1f}%")
        for kind, part in sorted(score.kinds.items()):
            print(f"  {kind:<26}{part.total:>6}{part.percent:>7.1f}%")


if __name__ == "__main__":
    main()
