"""RapidOCR: no vision-language model, but a reader of text in photographs that runs on any processor."""

import json
from collections.abc import Sequence

from serve.engines.base import Generation, Prompt
from serve.engines.ocr.engine import LINES, READ
from serve.models.base import Card, Checkpoint, Model, Skill, Turn, task_sampling, unchanged
from serve.models.contracts import Contract
from serve.models.spotting import lines_result
from serve.models.text_replies import parse_text
from serve.tasks.boxes import DetectResult
from serve.tasks.detect import DetectRequest
from serve.tasks.ocr import OcrRequest
from serve.tasks.reply import Result

VERSION = "3.10.0"
MAX_ROWS = 4096
QUOTES = "\"'`´‘’‚“”„«»"
BOXES = Contract("rapidocr", scale=None)


def _ask_ocr(request: OcrRequest) -> list[Prompt]:
    return [Prompt(LINES if request.boxes else READ, request.image, task_sampling(request, MAX_ROWS))]


def _parse_ocr(generations: Sequence[Generation], request: OcrRequest) -> Result:
    if not request.boxes:
        return parse_text(generations, request)
    return lines_result(BOXES.decode(generations[0], (request.image.width, request.image.height)).result().boxes)


def _ask_detect(request: DetectRequest) -> list[Prompt]:
    phrases = json.dumps(request.phrases, ensure_ascii=False)
    return [Prompt(phrases, request.image, task_sampling(request, MAX_ROWS))]


def _parse_detect(generations: Sequence[Generation], request: DetectRequest) -> DetectResult:
    return BOXES.decode(generations[0], (request.image.width, request.image.height), request.labels).result()


def _quoted(request: DetectRequest) -> bool:
    """Return whether a phrase is in quotation marks: then a text is meant, and no object."""
    labels = map(str.strip, request.labels)
    return any(len(label) > 2 and label[0] in QUOTES and label[-1] in QUOTES for label in labels)


def _converse(turns: Sequence[Turn]) -> str:
    """Return the prompt for the image's text: whatever is said, that is what it answers."""
    return READ


MODELS = [
    Model(
        name="rapidocr",
        checkpoint=Checkpoint(f"rapidocr=={VERSION}"),
        card=Card(
            organization="RapidAI; its weights are PaddlePaddle's PP-OCRv6, small",
            category="Text reader (OCR)",
            modality="image in; text and boxes out",
            released="2026-10-08",
            context_window=None,
            parameters=7_900_000,  # bytes of its three files, by four
            licence="Apache-2.0",
            tasks=("ocr", "detect"),
            features=("reads text", "places of words", "any processor", "Latin, Chinese, Japanese letters"),
            links=("https://github.com/RapidAI/RapidOCR",),
            about="It reads text in photographs and documents, in rows from top to bottom: printed Latin, Chinese or "
            "Japanese letters, also tilted; not Cyrillic, Arabic or Korean, handwriting badly. Columns of a page are "
            "not told apart. In a conversation it answers with the image's text, whatever is asked. For detection it "
            'finds words and phrases within a line, and no objects: put them in quotation marks, as "TOTAL", or ask it '
            "by its name. Scores are how probable the letters are.",
            overview=(
                "RapidOCR runs PaddlePaddle's small text models, one that finds lines of text and one that reads "
                "them, on any processor. It is no vision-language model: it was trained to read, and understands "
                "nothing that it reads.",
                "It is quick, small and exact on printed Latin, Chinese and Japanese letters, and says where each "
                "word stands. It cannot answer questions, errs in handwriting, and knows no columns. Vision-language "
                "models made for documents came after such readers: they write whole pages with tables, at a hundred "
                "times the size.",
            ),
            hardware="Any processor and no GPU: one thread, up to 1 GB of memory (measured), some seconds an image.",
            checked="The package itself: on drawn, tilted and noisy words (tests/engines/ocr).",
        ),
        skills={
            "ocr": Skill(_ask_ocr, _parse_ocr, spots=True),
            "detect": Skill(_ask_detect, _parse_detect, suits=_quoted, contract=BOXES),
        },
        converse=_converse,
        prepare=unchanged,
        engine="ocr",
    )
]
