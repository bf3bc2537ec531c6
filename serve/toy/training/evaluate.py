"""Measure the toys' accuracy on fresh scenes: `python -m serve.toy.training.evaluate`. Exits 1 below the floors.

It uses transformers: an image, the checkpoint's own processor, greedy `generate`, the decoded text. PaliGemma runs
twice, the second time with causal attention over the prompt: an engine with the wrong mask scores as in that column.
"""

import argparse
import functools
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
"""The first seed of the scenes. Training uses seeds below ten million, and those from there for its held-out scenes."""
SCALE = 2.0
FLOORS = {
    "llava": {"vqa": 90, "caption": 90, "ocr": 80, "detect": 75},
    "llava-b": {"vqa": 90, "caption": 85, "ocr": 80, "detect": 75},
    "paligemma": {"vqa": 90, "caption": 90, "ocr": 80, "detect": 85, "segment": 75},
    "paligemma-b": {"vqa": 90, "caption": 85, "ocr": 80, "detect": 85, "segment": 75},
}
"""The lowest accuracy in per cent by toy and task; for segment the mean IoU of the masks."""
KIND_OF = {"llava": "LlavaForConditionalGeneration", "paligemma": "PaliGemmaForConditionalGeneration"}
BATCH = 64


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


Item = tuple[Scene, Question]


def fresh_items(family: str, count: int, seed: int) -> list[Item]:
    """Make every type of question once per scene that allows it; ocr is asked about scenes that all have text."""
    rng = random.Random(f"exam {seed}")
    items: list[Item] = []
    for index in range(count):
        scene = world.scene(FRESH + seed + index)
        vqa = (questions.vqa(scene, kind, rng) for kind in questions.KINDS)
        items += [(scene, question) for question in vqa if question is not None]
        items.append((scene, Question("caption", "", "", questions.caption(scene))))
        phrases = questions.phrases(scene, unique=family == "llava")
        if phrases:
            single = questions.detect(scene, [rng.choice(phrases)])
            items.append((scene, Question("detect", "one phrase", single.text, boxes=single.boxes)))
        if family == "paligemma" and len(phrases) > 1:
            pair = questions.detect(scene, rng.sample(phrases, 2))
            items.append((scene, Question("detect", "two phrases", pair.text, boxes=pair.boxes)))
        if family == "paligemma" and phrases:
            # A random generator of its own, so that the questions from before masks existed stay the same.
            own = random.Random(f"exam {seed} {index} masks")
            items.append((scene, questions.segment(scene, [own.choice(phrases)])))
            items.append((scene, questions.absent(scene, own, "detect")))
        if family == "llava":
            items.append((scene, questions.chat(scene, rng)))
        written = world.scene(FRESH + seed + index, text=True)
        kind = "number" if written.text.isdigit() else "word"
        items.append((written, Question("ocr", kind, "", written.text)))
    return items


def enlarged(scene: Scene) -> PIL.Image.Image:
    return world.draw(scene, SCALE)


class Reference:
    """A checkpoint in transformers, float32. A batch has prompts of one length, so that none is padded. draw: makes
    the picture of an item's scene."""

    def __init__(
        self, family: str, folder: Path, device: str, draw: Callable[[Any], PIL.Image.Image] = enlarged
    ) -> None:
        self.family, self.device, self.draw = family, device, draw
        self.most = 80 if draw is enlarged else 220
        self.processor = transformers.AutoProcessor.from_pretrained(folder)
        kind: Any = getattr(transformers, KIND_OF[family])
        self.model = kind.from_pretrained(folder, dtype=torch.float32).to(device).eval()

    def answers(self, items: Sequence[tuple[Any, Question]], causal: bool = False) -> list[str]:
        """Answer all items. causal: with causal attention over PaliGemma's prompt, which is wrong for it."""
        replies = [""] * len(items)
        inputs = [self._input(*item) for item in items]
        order = sorted(range(len(items)), key=lambda i: inputs[i]["input_ids"].shape[1])
        for length, some in groupby(order, key=lambda i: int(inputs[i]["input_ids"].shape[1])):
            for rows in _batches(list(some)):
                batch = {name: torch.cat([inputs[i][name] for i in rows]).to(self.device) for name in inputs[rows[0]]}
                if causal:  # 1 marks the answer, which is causal: here everything
                    batch["token_type_ids"] = torch.ones_like(batch["token_type_ids"])
                tokens = self.model.generate(**batch, do_sample=False, max_new_tokens=self.most)[:, length:]
                for i, reply in zip(rows, self.processor.batch_decode(tokens, skip_special_tokens=True), strict=True):
                    replies[i] = reply.strip()
        return replies

    def _input(self, scene: Any, question: Question) -> dict[str, torch.Tensor]:
        picture = self.draw(scene)
        if self.family == "llava":
            text = prompts.turn(prompts.llava(question, scene.size)[0])
            picture = PIL.Image.fromarray(pad_to_square(Image.of(picture), PAD_COLOUR).pixels)
        else:
            text = "<image>" + prompts.paligemma(question)[0]
        inputs = self.processor(images=picture, text=text, return_tensors="pt")
        return {name: tensor for name, tensor in inputs.items() if name != "labels"}


def score_replies(family: str, items: list[Item], replies: list[str]) -> dict[str, Score]:
    """Return scores per task. Detection counts true boxes that a reply has (IoU 0.5, same phrase); segmentation sums
    the IoU of true masks; for a thing that is not there the right reply is empty."""
    scores: dict[str, Score] = {}
    for (scene, question), reply in zip(items, replies, strict=True):
        score = Score() if question.kind == "absent" else scores.setdefault(question.task, Score())
        if question.kind == "absent":
            scores.setdefault(f"{question.task}, absent", Score()).add("", not reply)
        elif question.task == "segment":
            score.add("", summed_iou(scene, question, reply), len(question.boxes))
        elif question.task == "detect":
            boxes = parse_brackets(reply, scene, question) if family == "llava" else parse_locs(reply)
            score.add(question.kind, count_recalled(question.boxes, boxes), len(question.boxes))
        elif question.task == "caption":
            score.add("", sorted(shape_names(reply)) == sorted(shape.name for shape in scene.shapes))
            scores.setdefault("caption, every word", Score()).add("", reply == question.answer)
        else:
            score.add(question.kind, reply.lower().rstrip(".") == question.answer.lower().rstrip("."))
    return scores


def shape_names(reply: str) -> list[str]:
    return re.findall(rf"(?:{'|'.join(world.COLORS)}) (?:{'|'.join(world.SHAPES)})", reply)


def parse_locs(reply: str) -> list[tuple[str, Box]]:
    """Parse `<locY0><locX0><locY1><locX1> red circle ; ...` into phrases and boxes."""
    boxes = []
    for part in reply.split(" ; "):
        match = re.fullmatch(r"<loc(\d{4})><loc(\d{4})><loc(\d{4})><loc(\d{4})>\s*(.+)", part)
        if match:
            y0, x0, y1, x1 = (int(number) / (prompts.LOC_BINS - 1) for number in match.groups()[:4])
            boxes.append((match[5], (x0, y0, x1, y1)))
    return boxes


def summed_iou(scene: Scene, question: Question, reply: str) -> float:
    """Match each true mask of the phrase with the best remaining mask of the reply, and return the sum of their IoU."""
    true = [masks.mask(scene, shape, scene.size) for shape in questions.matching(scene, question.text)]
    return matched_iou(true, parse_masks(reply, scene.size))


def matched_iou(true: list[Mask], replied: list[Mask]) -> float:
    """Match each true mask with the best remaining one of the reply, and return the sum of their IoU."""
    left, total = list(replied), 0.0
    for mask in true:
        ious = [float((mask & other).sum() / (mask | other).sum()) for other in left]
        if ious and max(ious) > 0:
            total += max(ious)
            left.pop(int(np.argmax(ious)))
    return total


def parse_masks(reply: str, size: tuple[int, int], folder: Path = HERE) -> list[Mask]:
    """Parse objects, four `<loc..>`, sixteen `<seg..>` and a phrase, joined by ` ; `, into masks of the whole image.

    size: the image's width and height. folder: where the mask decoder is.
    """
    drawn = []
    for part in reply.split(" ; "):
        match = re.fullmatch(r"((?:<loc\d{4}>){4})((?:<seg\d{3}>){16})\s*(.+)", part)
        if match:
            y0, x0, y1, x1 = (int(number) / (prompts.LOC_BINS - 1) for number in re.findall(r"\d{4}", match[1]))
            codes = np.array([int(number) for number in re.findall(r"\d{3}", match[2])])
            mask = mask_decoder.paste(decoder(folder)(codes[None])[0], (x0, y0, x1, y1), *size)
            drawn += [] if mask is None else [mask]
    return drawn


@functools.cache
def decoder(folder: Path) -> MaskDecoder:
    return mask_decoder.find(str(folder / "vae-oid.npz"))


def parse_brackets(reply: str, scene: Any, question: Question) -> list[tuple[str, Box]]:
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


def table(toy: str, scores: dict[str, Score], causal: dict[str, Score] | None) -> Iterator[str]:
    yield f"toy-{toy:<29}n   right" + ("  causal" if causal else "") + "   floor"
    for task, score in scores.items():
        floor = FLOORS[toy].get(task)
        lines = [(task, score, causal[task] if causal else None, floor)]
        for kind, part in score.kinds.items():
            lines.append((f"  {kind}", part, causal[task].kinds[kind] if causal else None, None))
        for name, measured, other, least in lines:
            line = f"{name:<28}{measured.total:>6}{measured.percent:>7.1f}%"
            line += f"{other.percent:>7.1f}%" if other else ""
            yield line + (f"{least:>7}%" + ("  BELOW" if measured.percent < least else "") if least else "")


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
        reference = Reference(family, options.folder / toy, options.device)
        items = fresh_items(family, options.n, options.seed)
        scores = score_replies(family, items, reference.answers(items))
        causal = None
        if family == "paligemma":
            causal = score_replies(family, items, reference.answers(items, causal=True))
        print("\n".join(table(toy, scores, causal)) + "\n", flush=True)
        failed |= any(scores[task].percent < floor for task, floor in FLOORS[toy].items())
    sys.exit(failed)


if __name__ == "__main__":
    main()
