"""Captioning: the picture in one sentence."""

from serve.tasks.base import Reply, Request, Result, Task
from serve.tasks.medoid import medoid
from serve.tasks.vqa import Language


class CaptionRequest(Request):
    lang: Language = "en"


class CaptionResult(Result):
    caption: str


def _text(reply: Reply) -> str:
    assert isinstance(reply.result, CaptionResult)
    return reply.result.caption


def _words(result: CaptionResult) -> str:
    return result.caption


CAPTION = Task(
    name="caption",
    title="Captioning",
    request=CaptionRequest,
    result=CaptionResult,
    methods={"medoid": medoid(_text)},
    words=_words,
)
