"""Reading (OCR): the text in the image, line by line."""

import re

from pydantic import Field

from serve.engines.base import Generation
from serve.tasks.base import Instruction, Task
from serve.tasks.merging.line_fusion import with_boxes
from serve.tasks.merging.medoid import medoid
from serve.tasks.merging.rover import likeness, rover
from serve.tasks.ocr_result import OcrResult
from serve.tasks.request import Request

NO_TEXT = "(no text)"
READ = (
    "Read all text in the image, from top to bottom, with a line for each line of the image. Write that text only. "
    f"If there is none, write {NO_TEXT}"
)
_FENCED = re.compile(r"```\w*[ \t]*(?:\n|$)((?:(?!^```).)*?)(^```)?", re.DOTALL | re.MULTILINE)


class OcrRequest(Request):
    boxes: bool = Field(
        default=False,
        description="Also say where each line of the text stands: asked of models that were trained to spot text.",
    )


def _prompt(request: OcrRequest) -> str:
    return READ


def _read(generation: Generation, request: OcrRequest) -> OcrResult:
    """Read a reply, NO_TEXT as none, and without the code fence that chat models put around a transcript.

    Raises as `OcrResult.read`.
    """
    result = OcrResult.read(generation)
    fenced = _FENCED.fullmatch(result.text)
    if fenced is not None and (fenced[2] or generation.cut):
        result = OcrResult.read(Generation(fenced[1], cut=not fenced[2]))
    return OcrResult(text="") if result.text.rstrip(".").casefold() in (NO_TEXT, NO_TEXT.strip("()")) else result


def _as_text(result: OcrResult) -> str:
    return result.text or "no text"


OCR = Task(
    name="ocr",
    title="Reading (OCR)",
    request=OcrRequest,
    result=OcrResult,
    verbatim=True,
    methods={"rover": with_boxes(rover(OcrResult.of)), "medoid": medoid(likeness)},
    instruction=Instruction(_prompt, _read, max_tokens=1024),
    by_confidence=True,
    as_text=_as_text,
)
