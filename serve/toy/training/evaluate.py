"""Ask the toys about fresh scenes: `python -m serve.toy.training.evaluate`. Exits 1 below the floors.

Asked end to end, as anyone would with transformers: picture, the checkpoint's own processor, greedy `generate`, words.
PaliGemma is asked twice, the second time with plain causal attention over the prompt: an engine that masks it wrongly
comes out like that second column.
"""

import argparse
import functools
import random
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
import transformers

from serve.engines.vllm.torchvision import repair
from serve.media.geometry import pad_to_square
from serve.media.image import Image
from serve.media.masks import Mask
from serve.models import mask_decoder
from serve.models.llava import PAD_COLOUR
from serve.models.mask_decoder import MaskDecoder
from serve.toy import masks, questions, world
from serve.toy.questions import Question
from serve.toy.training import prompts
from serve.toy.training.recipes import RECIPES
from serve.toy.world import Box, Scene

HERE = Path(__file__).parents[1]
FRESH = 20_000_000
"""Training uses seeds below ten million, its own held-out scenes those from there."""
SCALE = 2.0
FLOORS = {
    "llava": {"vqa": 90, "caption": 90, "ocr": 80, "detect": 75},
    "llava-b": {"vqa": 90, "caption": 85, "ocr": 80, "detect": 75},
    "paligemma": {"vqa": 90, "caption": 90, "ocr": 80, "detect": 85, "segment": 75},
    "paligemma-b": {"vqa": 90, "caption": 85, "ocr": 80, "detect": 85, "segment": 75},
}
"""By toy and task; segment is the mean IoU of the masks."""
KIND_OF = {"llava": "LlavaForConditionalGeneration", "paligemma": "PaliGemmaForConditionalGeneration"}
BATCH = 64


@dataclass
class Score:
    """Right answers of all asked, and by question type."""

    right: float = 0
    asked: int = 0
    kinds: dict[str, "Score"] = field(default_factory=dict)

    def add(self, kind: str, right: float, asked: int = 1) -> None:
        self.right += right
        self.asked += asked
        if kind:
            self.kinds.setdefault(kind, Score()).add("", right, asked)

    @property
    def percent(self) -> float:
        return 100 * self.right / max(1, self.asked)


Asked = tuple[Scene, Question]


def exam(family: str, count: int, seed: int) -> list[Asked]:
    """Every type of question once per scene, wherever the scene allows it; reading on scenes that all have text."""
    rng = random.Random(f"exam {seed}")
    asked: list[Asked] = []
    for index in range(count):
        what = world.scene(FRESH + seed + index)
        asked += [(what, one) for kind in questions.KINDS if (one := questions.vqa(what, kind, rng)) is not None]
        asked.append((what, Question("caption", "", "", questions.caption(what))))
        phrases = questions.phrases(what, unique=family == "llava")
        if phrases:
            one = questions.detect(what, [rng.choice(phrases)])
            asked.append((what, Question("detect", "one phrase", one.text, boxes=one.boxes)))
        if family == "paligemma" and len(phrases) > 1:
            two = questions.detect(what, rng.sample(phrases, 2))
            asked.append((what, Question("detect", "two phrases", two.text, boxes=two.boxes)))
        if family == "paligemma" and phrases:
            # A generator of its own, so that the older questions stay those they were.
            own = random.Random(f"exam {seed} {index} masks")
            asked.append((what, questions.segment(what, [own.choice(phrases)])))
            asked.append((what, questions.absent(what, own, "detect")))
        if family == "llava":
            asked.append((what, questions.chat(what, rng)))
        written = world.scene(FRESH + seed + index, text=True)
        kind = "number" if written.text.isdigit() else "word"
        asked.append((written, Question("ocr", kind, "", written.text)))
    return asked


class Student:
    """A checkpoint in transformers, float32, answering in batches of prompts of one length, so that none is padded."""

    def __init__(self, family: str, folder: Path, device: str) -> None:
        self.family, self.device = family, device
        self.processor = transformers.AutoProcessor.from_pretrained(folder)
        kind: Any = getattr(transformers, KIND_OF[family])
        self.model = kind.from_pretrained(folder, dtype=torch.float32).to(device).eval()

    def answers(self, asked: list[Asked], causal: bool = False) -> list[str]:
        said = [""] * len(asked)
        inputs = [self._input(*one) for one in asked]
        order = sorted(range(len(asked)), key=lambda i: inputs[i]["input_ids"].shape[1])
        for length, some in groupby(order, key=lambda i: int(inputs[i]["input_ids"].shape[1])):
            for rows in _batches(list(some)):
                batch = {name: torch.cat([inputs[i][name] for i in rows]).to(self.device) for name in inputs[rows[0]]}
                if causal:  # 1 marks what is answered: all of it, so that nothing looks ahead
                    batch["token_type_ids"] = torch.ones_like(batch["token_type_ids"])
                tokens = self.model.generate(**batch, do_sample=False, max_new_tokens=80)[:, length:]
                for i, words in zip(rows, self.processor.batch_decode(tokens, skip_special_tokens=True), strict=True):
                    said[i] = words.strip()
        return said

    def _input(self, what: Scene, question: Question) -> dict[str, torch.Tensor]:
        picture = world.draw(what, SCALE)
        if self.family == "llava":
            text = prompts.turn(prompts.llava(question, what.size)[0])
            picture = PIL.Image.fromarray(pad_to_square(Image.of(picture), PAD_COLOUR).pixels)
        else:
            text = "<image>" + prompts.paligemma(question)[0]
        found = self.processor(images=picture, text=text, return_tensors="pt")
        return {name: tensor for name, tensor in found.items() if name != "labels"}


def marked(family: str, asked: list[Asked], said: list[str]) -> dict[str, Score]:
    """Scores per task. Detection counts true boxes found (IoU 0.5, right phrase) of all true boxes; segmentation adds
    up the IoU of true masks; what is not there should bring no answer."""
    scores: dict[str, Score] = {}
    for (what, question), words in zip(asked, said, strict=True):
        score = Score() if question.kind == "absent" else scores.setdefault(question.task, Score())
        if question.kind == "absent":
            scores.setdefault(f"{question.task}, absent", Score()).add("", not words)
        elif question.task == "segment":
            score.add("", overlapped(what, question, words), len(question.boxes))
        elif question.task == "detect":
            found = brackets(words, what, question) if family == "llava" else locs(words)
            score.add(question.kind, recalled(question.boxes, found), len(question.boxes))
        elif question.task == "caption":
            score.add("", sorted(named(words)) == sorted(shape.name for shape in what.shapes))
            scores.setdefault("caption, every word", Score()).add("", words == question.answer)
        else:
            score.add(question.kind, words.lower().rstrip(".") == question.answer.lower().rstrip("."))
    return scores


def named(words: str) -> list[str]:
    return re.findall(rf"(?:{'|'.join(world.COLORS)}) (?:{'|'.join(world.SHAPES)})", words)


def locs(words: str) -> list[tuple[str, Box]]:
    """`<locY0><locX0><locY1><locX1> red circle ; ...`"""
    found = []
    for part in words.split(" ; "):
        match = re.fullmatch(r"<loc(\d{4})><loc(\d{4})><loc(\d{4})><loc(\d{4})>\s*(.+)", part)
        if match:
            y0, x0, y1, x1 = (int(number) / (prompts.LOC_BINS - 1) for number in match.groups()[:4])
            found.append((match[5], (x0, y0, x1, y1)))
    return found


def overlapped(what: Scene, question: Question, words: str) -> float:
    """The IoU of each true mask of the phrase with a mask to itself, added up, in a picture of nominal size."""
    true = [masks.mask(what, shape, what.size) for shape in questions.matching(what, question.text)]
    left, total = spoken_masks(words, what.size), 0.0
    for one in true:
        ious = [float((one & other).sum() / (one | other).sum()) for other in left]
        if ious and max(ious) > 0:
            total += max(ious)
            left.pop(int(np.argmax(ious)))
    return total


def spoken_masks(words: str, size: tuple[int, int]) -> list[Mask]:
    """`<loc..>` four times, `<seg..>` sixteen times and a phrase, ` ; ` between them, as masks of a whole picture."""
    found = []
    for part in words.split(" ; "):
        match = re.fullmatch(r"((?:<loc\d{4}>){4})((?:<seg\d{3}>){16})\s*(.+)", part)
        if match:
            y0, x0, y1, x1 = (int(number) / (prompts.LOC_BINS - 1) for number in re.findall(r"\d{4}", match[1]))
            codes = np.array([int(number) for number in re.findall(r"\d{3}", match[2])])
            drawn = mask_decoder.paste(decoder()(codes[None])[0], (x0, y0, x1, y1), *size)
            found += [] if drawn is None else [drawn]
    return found


@functools.cache
def decoder() -> MaskDecoder:
    return mask_decoder.find(str(HERE / "vae-oid.npz"))


def brackets(words: str, what: Scene, question: Question) -> list[tuple[str, Box]]:
    """`[0.12, 0.30, 0.44, 0.62]`, the place of the phrase that was asked."""
    numbers = [float(number) for number in re.findall(r"\d\.\d+", words)]
    if len(numbers) != 4:
        return []
    x0, y0, x1, y1 = numbers
    return [(question.text, prompts.unpadded((x0, y0, x1, y1), what.size))]


def recalled(true: tuple[tuple[str, Box], ...], found: list[tuple[str, Box]]) -> int:
    """How many true boxes have a box of the same phrase to themselves that overlaps by half."""
    left, count = list(found), 0
    for phrase, box in true:
        best = max((one for one in left if one[0] == phrase), key=lambda one: overlap(one[1], box), default=None)
        if best is not None and overlap(best[1], box) >= 0.5:
            left.remove(best)
            count += 1
    return count


def overlap(a: Box, b: Box) -> float:
    """Intersection over union; stretching both alike does not change it, so fractions will do."""
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(0.0, wide) * max(0.0, high)
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return both / (areas - both) if areas > both else 0.0


def table(toy: str, scores: dict[str, Score], causal: dict[str, Score] | None) -> Iterator[str]:
    yield f"toy-{toy:<29}n   right" + ("  causal" if causal else "") + "   floor"
    for task, score in scores.items():
        floor = FLOORS[toy].get(task)
        lines = [(task, score, causal[task] if causal else None, floor)]
        for kind, one in score.kinds.items():
            lines.append((f"  {kind}", one, causal[task].kinds[kind] if causal else None, None))
        for name, one, other, least in lines:
            line = f"{name:<28}{one.asked:>6}{one.percent:>7.1f}%"
            line += f"{other.percent:>7.1f}%" if other else ""
            yield line + (f"{least:>7}%" + ("  BELOW" if one.percent < least else "") if least else "")


def _batches(rows: list[int]) -> Iterator[list[int]]:
    for start in range(0, len(rows), BATCH):
        yield rows[start : start + BATCH]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=200, help="scenes")
    parser.add_argument("--seed", type=int, default=0, help="which fresh scenes")
    parser.add_argument("--model", choices=tuple(FLOORS), action="append", help="default: all")
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
        student = Student(family, options.folder / toy, options.device)
        asked = exam(family, options.n, options.seed)
        scores = marked(family, asked, student.answers(asked))
        causal = marked(family, asked, student.answers(asked, causal=True)) if family == "paligemma" else None
        print("\n".join(table(toy, scores, causal)) + "\n", flush=True)
        failed |= any(scores[task].percent < floor for task, floor in FLOORS[toy].items())
    sys.exit(failed)


if __name__ == "__main__":
    main()
