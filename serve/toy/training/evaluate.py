"""Measure the toys' accuracy: `python -m serve.toy.training.evaluate`. Exits 1 below the floors.

It asks questions of the second language (serve/toy/varied/exam.py), by kind, and captions, boxes, masks and reading on
fresh scenes, through transformers: the checkpoint's own processor, greedy `generate`, the decoded text. With --causal
PaliGemma is asked with causal attention over the prompt, as by an engine with the wrong mask.
"""

import argparse
import functools
import itertools
import random
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
import transformers
from rapidfuzz.distance import Levenshtein

from serve.engines.vllm.torchvision import repair
from serve.media.geometry import pad_to_square
from serve.media.image import Image
from serve.media.masks import Mask
from serve.models import mask_decoder
from serve.models.llava import PAD_COLOUR
from serve.models.mask_decoder import MaskDecoder
from serve.toy import world
from serve.toy.questions import Question
from serve.toy.training import album, prompts
from serve.toy.training.recipes import RECIPES
from serve.toy.varied import exam, grammar
from serve.toy.varied.facts import Fact, caption_of, is_right
from serve.toy.varied.kinds import KINDS
from serve.toy.varied.scenes import Thing, VariedScene, as_varied, installed_fonts, render, seen_mask, varied_scene
from serve.toy.world import Box

HERE = Path(__file__).parents[1]
OTHER_SCENES = 5_000_000
"""Scenes for captions, boxes, masks and reading start so far after those of the questions."""
FLOORS = {
    "llava": {"vqa": 84, "caption": 75, "ocr": 90, "detect": 88},
    "llava-b": {"vqa": 84, "caption": 75, "ocr": 90, "detect": 88},
    "paligemma": {"vqa": 84, "caption": 62, "ocr": 88, "segment": 65},
    "paligemma-b": {"vqa": 82, "caption": 62, "ocr": 85, "segment": 65},
}
"""The lowest accuracy in per cent by toy and task; for segment the mean IoU of the masks."""
KIND_OF = {"llava": "LlavaForConditionalGeneration", "paligemma": "PaliGemmaForConditionalGeneration"}
BATCH, LONGEST = 64, 220
"""Replies made at once, and the most tokens of one."""


@dataclass
class Score:
    """A number of right answers out of a total, and the same by question type."""

    right: float = 0
    total: int = 0
    kinds: dict[str, "Score"] = field(default_factory=dict)

    def add(self, kind: str, right: float, total: int = 1) -> None:
        self.right += right
        self.total += total
        if kind:
            self.kinds.setdefault(kind, Score()).add("", right, total)

    @property
    def percent(self) -> float:
        return 100 * self.right / max(1, self.total)


@dataclass(frozen=True)
class ExamItem:
    """A question about a scene with what its reply is judged by: a fact, or true masks."""

    scene: VariedScene
    question: Question
    fact: Fact | None = None
    masks: tuple[Mask, ...] = ()


def vqa_items(count: int, seed: int) -> list[ExamItem]:
    drawn = exam.exam_questions(count, seed, installed_fonts())
    return [ExamItem(q.scene, Question("vqa", q.fact.kind, q.text, q.fact.answers[0]), q.fact) for q in drawn]


def other_items(family: str, count: int, seed: int) -> Iterator[ExamItem]:
    """Yield for each of `count` scenes a caption, a phrase to detect and to segment, and text to read."""
    for at in range(exam.FRESH + OTHER_SCENES + seed, exam.FRESH + OTHER_SCENES + seed + count):
        rng = random.Random(f"exam places {at}")
        scene = varied_scene(at, fonts=installed_fonts())
        yield ExamItem(scene, Question("caption", "caption", "", caption_of(scene)))
        pair = grammar.located(scene, rng, single=family == "llava", wording=exam.EXAM)
        if pair is not None:
            yield _located_item("detect", scene, *pair)
            if family == "paligemma":
                yield _located_item("segment", scene, *pair)
        written = varied_scene(at, writing=True, fonts=installed_fonts())
        text = written.writing.text if written.writing is not None else ""
        yield ExamItem(written, Question("ocr", "number" if text.isdigit() else "word", "", text))


def shipped_items(family: str, times: int) -> Iterator[ExamItem]:
    """Yield for each shipped scene every kind of question that it allows, in `times` wordings of either language, a
    caption, what is written, and each thing by its name and by other phrases."""
    for seed in album.SEEDS.values():
        rng, scene = random.Random(seed), as_varied(world.scene(seed))
        for kind, wording in itertools.product(KINDS, (grammar.TRAINING, exam.EXAM) * times):
            pair = grammar.phrased(scene, kind, rng, wording)
            if pair is not None:
                yield ExamItem(scene, Question("vqa", kind, pair[0], pair[1].answers[0]), pair[1])
        yield ExamItem(scene, Question("caption", "caption", "", caption_of(scene)))
        yield ExamItem(scene, Question("ocr", "ocr", "", scene.writing.text if scene.writing else "nothing"))
        for task in ("detect", "segment")[: 1 + (family == "paligemma")]:
            for wording in (grammar.TRAINING, exam.EXAM) * 2 * times:
                located = grammar.located(scene, rng, single=family == "llava", wording=wording)
                if located is not None:
                    yield _located_item(task, scene, *located)


@functools.cache
def shipped_picture(scene: VariedScene) -> PIL.Image.Image:
    return album.picture(world.scene(scene.seed))


def _located_item(task: str, scene: VariedScene, phrase: str, things: list[Thing]) -> ExamItem:
    boxes = tuple((phrase, thing.box) for thing in things)
    kind = "one thing" if len(things) == 1 else "several"
    masks = tuple(seen_mask(scene, scene.things.index(thing), scene.size) for thing in things)
    codes = tuple(prompts.CODES[thing.kind] for thing in things) if task == "segment" else ()
    return ExamItem(scene, Question(task, kind, phrase, boxes=boxes, codes=codes), masks=masks)


class Reference:
    """A checkpoint in transformers, float32. A batch has prompts of one length, so that none is padded. draw: makes
    the picture of an item's scene."""

    def __init__(self, family: str, folder: Path, device: str, draw: Callable[[Any], PIL.Image.Image] = render) -> None:
        self.family, self.device, self.draw = family, device, draw
        self.processor = transformers.AutoProcessor.from_pretrained(folder)
        kind: Any = getattr(transformers, KIND_OF[family])
        self.model = kind.from_pretrained(folder, dtype=torch.float32).to(device).eval()

    def answers(self, items: Sequence[ExamItem], causal: bool = False) -> list[str]:
        """Answer all items. causal: with causal attention over PaliGemma's prompt, which is wrong for it."""
        replies = [""] * len(items)
        inputs = [self.inputs(item.scene, item.question) for item in items]
        order = sorted(range(len(items)), key=lambda i: inputs[i]["input_ids"].shape[1])
        for length, some in groupby(order, key=lambda i: int(inputs[i]["input_ids"].shape[1])):
            for rows in _batches(list(some)):
                batch = {name: torch.cat([inputs[i][name] for i in rows]).to(self.device) for name in inputs[rows[0]]}
                if causal:  # 1 marks the answer, which is causal: here everything
                    batch["token_type_ids"] = torch.ones_like(batch["token_type_ids"])
                tokens = self.model.generate(**batch, do_sample=False, max_new_tokens=LONGEST)[:, length:]
                for i, reply in zip(rows, self.processor.batch_decode(tokens, skip_special_tokens=True), strict=True):
                    replies[i] = reply.strip()
        return replies

    def inputs(self, scene: VariedScene, question: Question) -> dict[str, torch.Tensor]:
        """Return the processor's tensors for a question about a scene."""
        picture = self.draw(scene)
        if self.family == "llava":
            text = prompts.turn(prompts.llava(question, scene.size)[0])
            picture = PIL.Image.fromarray(pad_to_square(Image.of(picture), PAD_COLOUR).pixels)
        else:
            text = "<image>" + prompts.paligemma(question)[0]
        inputs = self.processor(images=picture, text=text, return_tensors="pt")
        return {name: tensor for name, tensor in inputs.items() if name != "labels"}


def score_replies(family: str, items: Sequence[ExamItem], replies: Sequence[str]) -> dict[str, Score]:
    """Return scores per task: right answers, true boxes found (IoU 0.5, same phrase), the mean IoU of masks; of ocr the
    share of letters that are right, which is 100 less the character error rate."""
    scores: dict[str, Score] = {}
    for item, reply in zip(items, replies, strict=True):
        scene, question = item.scene, item.question
        score = scores.setdefault(question.task, Score())
        if item.fact is not None:
            score.add(question.kind, is_right(item.fact, reply))
        elif question.task == "detect":
            boxes = parse_brackets(reply, scene, question) if family == "llava" else parse_locs(reply)
            score.add(question.kind, count_recalled(question.boxes, boxes), len(question.boxes))
        elif question.task == "segment":
            score.add(question.kind, matched_iou(item.masks, parse_masks(reply, scene.size)), len(question.boxes))
        elif question.task == "ocr":
            wrong = min(len(question.answer), Levenshtein.distance(reply, question.answer))
            score.add(question.kind, len(question.answer) - wrong, len(question.answer))
        else:
            score.add("", reply == question.answer)
    return scores


def parse_locs(reply: str) -> list[tuple[str, Box]]:
    """Parse `<locY0><locX0><locY1><locX1> red circle ; ...` into phrases and boxes."""
    boxes = []
    for part in reply.split(" ; "):
        match = re.fullmatch(r"<loc(\d{4})><loc(\d{4})><loc(\d{4})><loc(\d{4})>\s*(.+)", part)
        if match:
            y0, x0, y1, x1 = (int(number) / (prompts.LOC_BINS - 1) for number in match.groups()[:4])
            boxes.append((match[5], (x0, y0, x1, y1)))
    return boxes


def matched_iou(true: Sequence[Mask], replied: Sequence[Mask]) -> float:
    """Match each true mask with the best remaining one of the reply, and return the sum of their IoU."""
    left, total = list(replied), 0.0
    for mask in true:
        ious = [float((mask & other).sum() / (mask | other).sum()) for other in left]
        if ious and max(ious) > 0:
            total += max(ious)
            left.pop(int(np.argmax(ious)))
    return total


def parse_masks(reply: str, size: tuple[int, int]) -> list[Mask]:
    """Parse objects, four `<loc..>`, sixteen `<seg..>` and a phrase, joined by ` ; `, into masks of the whole image.

    size: the image's width and height.
    """
    drawn = []
    for part in reply.split(" ; "):
        match = re.fullmatch(r"((?:<loc\d{4}>){4})((?:<seg\d{3}>){16})\s*(.+)", part)
        if match:
            y0, x0, y1, x1 = (int(number) / (prompts.LOC_BINS - 1) for number in re.findall(r"\d{4}", match[1]))
            codes = np.array([int(number) for number in re.findall(r"\d{3}", match[2])])
            mask = mask_decoder.paste(decoder()(codes[None])[0], (x0, y0, x1, y1), *size)
            drawn += [] if mask is None else [mask]
    return drawn


@functools.cache
def decoder() -> MaskDecoder:
    return mask_decoder.find(str(HERE / "vae-oid.npz"))


def parse_brackets(reply: str, scene: VariedScene, question: Question) -> list[tuple[str, Box]]:
    """Parse `[0.12, 0.30, 0.44, 0.62]` into the box of the question's phrase; no box for any other number of values."""
    numbers = [float(number) for number in re.findall(r"\d\.\d+", reply)]
    if len(numbers) != 4:
        return []
    x0, y0, x1, y1 = numbers
    return [(question.text, prompts.unpadded((x0, y0, x1, y1), scene.size))]


def count_recalled(true: tuple[tuple[str, Box], ...], replied: list[tuple[str, Box]]) -> int:
    """Count the true boxes that match a reply's box of the same phrase with IoU 0.5 or more, each of those once."""
    left, count = list(replied), 0
    for phrase, box in true:
        same = [other for other in left if other[0] == phrase]
        best = max(same, key=lambda other: box_iou(other[1], box), default=None)
        if best is not None and box_iou(best[1], box) >= 0.5:
            left.remove(best)
            count += 1
    return count


def box_iou(a: Box, b: Box) -> float:
    """Return the intersection over union of two boxes, which is the same in fractions as in pixels."""
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(0.0, wide) * max(0.0, high)
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return both / (areas - both) if areas > both else 0.0


def table(toy: str, scores: dict[str, Score]) -> Iterator[str]:
    yield f"toy-{toy:<29}n   right   floor"
    for task, score in scores.items():
        least = FLOORS[toy].get(task)
        yield f"{task:<28}{score.total:>6}{score.percent:>7.1f}%" + (
            f"{least:>7}%" + ("  BELOW" if score.percent < least else "") if least else ""
        )
        for kind, part in sorted(score.kinds.items()):
            yield f"  {kind:<26}{part.total:>6}{part.percent:>7.1f}%"


def _batches(rows: list[int]) -> Iterator[list[int]]:
    for start in range(0, len(rows), BATCH):
        yield rows[start : start + BATCH]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=tuple(FLOORS), action="append", help="default: all")
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--n", type=int, default=300, help="scenes for the other tasks")
    parser.add_argument("--seed", type=int, default=0, help="which fresh scenes")
    parser.add_argument("--shipped", type=int, metavar="N", help="ask N times about the shipped scenes instead")
    parser.add_argument("--wrong", action="store_true", help="print each wrong answer of vqa")
    parser.add_argument("--causal", action="store_true", help="PaliGemma with the wrong mask")
    parser.add_argument("--folder", type=Path, default=HERE, help="where the folders of the toys are")
    parser.add_argument("--threads", type=int, default=0, help="default: torch's own choice")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    repair()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    failed = False
    for toy in options.model or FLOORS:
        family = RECIPES[toy].family
        draw: Callable[[Any], PIL.Image.Image] = shipped_picture if options.shipped else render
        if options.shipped:
            items = [*shipped_items(family, options.shipped)]
        else:
            items = [*vqa_items(options.questions, options.seed), *other_items(family, options.n, options.seed)]
        reference = Reference(family, options.folder / toy, options.device, draw)
        replies = reference.answers(items, causal=options.causal and family == "paligemma")
        for item, reply in zip(items, replies, strict=True):
            if options.wrong and item.fact is not None and not is_right(item.fact, reply):
                print(f"{item.scene.seed} {item.question.text} -> {reply}, in place of {item.fact.answers[0]}")
        scores = score_replies(family, items, replies)
        print("\n".join(table(toy, scores)) + "\n", flush=True)
        failed |= any(scores[task].percent < floor for task, floor in FLOORS[toy].items())
    sys.exit(failed)


if __name__ == "__main__":
    main()
