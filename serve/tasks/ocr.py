"""Reading: the text in the picture, as it stands there."""

from serve.tasks.base import Reply, Request, Result, Task
from serve.tasks.medoid import medoid
from serve.tasks.rover import likeness, rover


class OcrRequest(Request):
    pass


class OcrResult(Result):
    """The text, its lines separated by newlines; empty where there is none."""

    text: str


def _text(reply: Reply) -> str:
    assert isinstance(reply.result, OcrResult)
    return reply.result.text


def _result(text: str) -> OcrResult:
    return OcrResult(text=text)


def _words(result: OcrResult) -> str:
    return result.text or "no text"


OCR = Task(
    name="ocr",
    title="Reading (OCR)",
    request=OcrRequest,
    result=OcrResult,
    methods={"rover": rover(_text, _result), "medoid": medoid(_text, likeness)},
    words=_words,
)
