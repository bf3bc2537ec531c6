"""Prompts and answers of both families, in the exact form that the published checkpoints were trained on.

PaliGemma's prompt is the text alone: its processor adds the image tokens, `<bos>` and the newline.
LLaVA's is a whole turn, and its boxes are fractions of the image padded to a square.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from serve.media import geometry
from serve.models.base import Turn
from serve.models.llava import llava_prompt
from serve.models.llava_tasks import READ, REGION, SENTENCE, SHORT
from serve.toy.questions import Question
from serve.toy.world import Box

LOC_BINS = 1024

LOC_STEP, FIRST_LOC = 8, 4
"""PaliGemma toys use every eighth bin only: 128 coordinates are learnt sooner than 1024."""
CODES: dict[str, tuple[int, ...]] = {
    kind: tuple(row) for kind, row in json.loads((Path(__file__).parents[1] / "codes.json").read_text()).items()
}
"""The sixteen mask codes of each whole shape in its box, written by codec.py."""
BOX_STEP = 2
"""LLaVA toys use even hundredths only."""


def paligemma(question: Question, first: int = FIRST_LOC, step: int = LOC_STEP) -> tuple[str, str]:
    """Return prompt and answer. first, step: the toy's lowest `<loc>`, and how far apart those are that it uses."""
    if question.task == "vqa":
        return f"answer en {question.text}", question.answer
    if question.task == "detect":
        return f"detect {question.text}", " ; ".join(f"{locs(box, first, step)} {name}" for name, box in question.boxes)
    if question.task == "segment":
        codes = question.codes or [CODES[name.split()[-1]] for name, _ in question.boxes]
        objects = (
            f"{locs(box, first, step)}{segs(code)} {name}"
            for (name, box), code in zip(question.boxes, codes, strict=True)
        )
        return f"segment {question.text}", " ; ".join(objects)
    return {"caption": "caption en", "ocr": "ocr"}[question.task], question.answer


def llava(question: Question, size: tuple[int, int]) -> tuple[str, str]:
    """Return the user's text and the answer; `turn` makes a prompt of the text. size: the image's width and height.

    A detect question must have one phrase with one box.
    """
    if question.task == "vqa":
        return question.text + SHORT, question.answer
    if question.task == "detect":
        ((phrase, box),) = question.boxes
        return REGION + question.text, brackets(padded(box, size))
    if question.task == "chat":
        return question.text, question.answer
    return {"caption": SENTENCE, "ocr": READ}[question.task].format("image"), question.answer


def turn(text: str) -> str:
    return llava_prompt([Turn("user", text, has_image=True)])


def padded(box: Box, size: tuple[int, int]) -> Box:
    """Map a box of the image to the square that the image is centred in, both in fractions."""
    width, height = size
    side, left, top = geometry.padding(width, height)
    x0, y0, x1, y1 = box
    return (
        (x0 * width + left) / side, (y0 * height + top) / side, (x1 * width + left) / side, (y1 * height + top) / side,
    )  # fmt: skip


def unpadded(box: Box, size: tuple[int, int]) -> Box:
    """Map a box of the padded square back to the image, clipped to it."""
    width, height = size
    x0, y0, x1, y1 = geometry.from_padded(box, width, height)
    return x0 / width, y0 / height, x1 / width, y1 / height


def locs(box: Box, first: int = FIRST_LOC, step: int = LOC_STEP) -> str:
    """Write a box as `<locY0><locX0><locY1><locX1>`."""
    x0, y0, x1, y1 = box
    return "".join(f"<loc{loc_bin(v, first, step):04d}>" for v in (y0, x0, y1, x1))


def loc_bin(value: float, first: int = FIRST_LOC, step: int = LOC_STEP) -> int:
    """Return the nearest bin that the toy uses."""
    cell = math.floor((value * (LOC_BINS - 1) - first) / step + 0.5)
    return min(LOC_BINS // step - 1, max(0, cell)) * step + first


def segs(codes: Sequence[int]) -> str:
    """Write the codes of a mask in its box as sixteen `<segNNN>`."""
    return "".join(f"<seg{code:03d}>" for code in codes)


def brackets(box: Box) -> str:
    """Write a box as `[0.12, 0.30, 0.44, 0.62]`: x0, y0, x1, y1."""
    return "[" + ", ".join(f"0.{hundredths(v):02d}" for v in box) + "]"


def hundredths(value: float) -> int:
    return min(100 - BOX_STEP, max(0, BOX_STEP * round(value * 100 / BOX_STEP)))
