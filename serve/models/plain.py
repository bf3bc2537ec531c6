"""Replies whose words are the result as they stand."""

from collections.abc import Sequence

from serve.engines.base import Spoken
from serve.errors import ParseError
from serve.tasks.caption import CaptionRequest, CaptionResult
from serve.tasks.chat import ChatRequest, ChatResult
from serve.tasks.ocr import OcrRequest, OcrResult
from serve.tasks.vqa import VqaRequest, VqaResult


def parse_vqa(spoken: Sequence[Spoken], request: VqaRequest) -> VqaResult:
    return VqaResult(answer=_said(spoken))


def parse_caption(spoken: Sequence[Spoken], request: CaptionRequest) -> CaptionResult:
    return CaptionResult(caption=_said(spoken))


def parse_chat(spoken: Sequence[Spoken], request: ChatRequest) -> ChatResult:
    return ChatResult(text=_said(spoken))


def parse_ocr(spoken: Sequence[Spoken], request: OcrRequest) -> OcrResult:
    """The words as they stand; to say nothing means that there is no text."""
    return OcrResult(text=spoken[0].text.strip())


def parse_toy_ocr(spoken: Sequence[Spoken], request: OcrRequest) -> OcrResult:
    """The toys were trained to say `nothing` of a picture without text. Of a sign it would be a word like any other."""
    text = parse_ocr(spoken, request).text
    return OcrResult(text="" if text == "nothing" else text)


def _said(spoken: Sequence[Spoken]) -> str:
    text = spoken[0].text.strip()
    if not text:
        raise ParseError("The reply is empty.")
    return text
