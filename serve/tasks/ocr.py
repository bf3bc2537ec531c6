"""Reading (OCR): the text in the image, line by line."""

from serve.tasks.base import Request, Task, TextResult
from serve.tasks.merging.medoid import medoid
from serve.tasks.merging.rover import likeness, rover


class OcrRequest(Request):
    pass


class OcrResult(TextResult):
    """The text, its lines separated by newlines; empty where there is none."""

    text: str


def _as_text(result: OcrResult) -> str:
    return result.text or "no text"


OCR = Task(
    name="ocr",
    title="Reading (OCR)",
    request=OcrRequest,
    result=OcrResult,
    verbatim=True,
    methods={"rover": rover(OcrResult.of), "medoid": medoid(likeness)},
    as_text=_as_text,
)
