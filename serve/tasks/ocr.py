"""Reading (OCR): the text in the image, line by line."""

from typing import Any, Self

from serve.engines.base import Generation
from serve.errors import ParseError
from serve.tasks.base import CUT, Instruction, Request, Task, TextResult
from serve.tasks.merging.medoid import medoid
from serve.tasks.merging.rover import likeness, rover

NO_TEXT = "(no text)"
READ = (
    "Read all text in the image, from top to bottom, with a line for each line of the image. Write that text only. "
    f"If there is none, write {NO_TEXT}"
)


class OcrRequest(Request):
    pass


class OcrResult(TextResult):
    """The text, its lines separated by newlines; empty where there is none."""

    text: str

    @classmethod
    def read(cls, generation: Generation, request: Any = None) -> Self:
        """Return what a model wrote as the image's text. Raises ParseError for a reply cut before its first word."""
        text = generation.text.strip()
        if not text and generation.cut:
            raise ParseError(CUT)
        return cls(text=text)


def _prompt(request: OcrRequest) -> str:
    return READ


def _read(generation: Generation, request: OcrRequest) -> OcrResult:
    """Read a reply, NO_TEXT as none. Raises as `OcrResult.read`."""
    result = OcrResult.read(generation)
    return OcrResult(text="") if result.text.rstrip(".").casefold() in (NO_TEXT, NO_TEXT.strip("()")) else result


def _as_text(result: OcrResult) -> str:
    return result.text or "no text"


OCR = Task(
    name="ocr",
    title="Reading (OCR)",
    request=OcrRequest,
    result=OcrResult,
    verbatim=True,
    methods={"rover": rover(OcrResult.of), "medoid": medoid(likeness)},
    instruction=Instruction(_prompt, _read, max_tokens=1024),
    by_confidence=True,
    as_text=_as_text,
)
