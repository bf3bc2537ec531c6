"""Captioning: the image described in one sentence."""

from serve.tasks.base import Instruction, Judging, Task
from serve.tasks.merging.medoid import medoid
from serve.tasks.reply import TextResult, text_of
from serve.tasks.request import JudgeName, Request
from serve.tasks.vqa import Language, language_clause


class CaptionRequest(Request):
    lang: Language = "en"
    judge: JudgeName = None


class CaptionResult(TextResult):
    caption: str


def _instruction(request: CaptionRequest) -> str:
    language = "" if request.lang == "en" else f" Language: {request.lang}."
    return f"Describe the image in one sentence.{language}"


def _prompt(request: CaptionRequest) -> str:
    return "Describe the image in one sentence. Write that sentence only." + language_clause(request.lang)


CAPTION = Task(
    name="caption",
    title="Captioning",
    known_as=("image-captioning",),
    request=CaptionRequest,
    result=CaptionResult,
    methods={"medoid": medoid()},
    instruction=Instruction(_prompt, CaptionResult.read, max_tokens=128),
    judging=Judging(_instruction, text_of, CaptionResult.of),
)
