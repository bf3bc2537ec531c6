"""Captioning: the picture in one sentence."""

from serve.tasks.base import JudgeName, Judging, Reply, Request, Result, Task
from serve.tasks.medoid import medoid
from serve.tasks.vqa import Language


class CaptionRequest(Request):
    lang: Language = "en"
    judge: JudgeName = None


class CaptionResult(Result):
    caption: str


def _asked(request: CaptionRequest) -> str:
    language = "" if request.lang == "en" else f" Language: {request.lang}."
    return f"Describe the image in one sentence.{language}"


def _text(reply: Reply) -> str:
    assert isinstance(reply.result, CaptionResult)
    return reply.result.caption


def _result(text: str) -> CaptionResult:
    return CaptionResult(caption=text)


def _words(result: CaptionResult) -> str:
    return result.caption


CAPTION = Task(
    name="caption",
    title="Captioning",
    request=CaptionRequest,
    result=CaptionResult,
    methods={"medoid": medoid(_text)},
    words=_words,
    judging=Judging(_asked, _text, _result),
)
