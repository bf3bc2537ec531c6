"""Replies whose words are the result as they stand."""

from collections.abc import Sequence

from serve.engines.base import Spoken
from serve.errors import ParseError
from serve.tasks.caption import CaptionRequest, CaptionResult
from serve.tasks.chat import ChatRequest, ChatResult
from serve.tasks.ocr import OcrRequest, OcrResult
from serve.tasks.vqa import VqaRequest, VqaResult

CUT = "The reply was cut by max_tokens before its first whole word."
NOTHING = "nothing"


def parse_vqa(spoken: Sequence[Spoken], request: VqaRequest) -> VqaResult:
    return VqaResult(answer=_said(spoken))


def parse_caption(spoken: Sequence[Spoken], request: CaptionRequest) -> CaptionResult:
    return CaptionResult(caption=_said(spoken))


def parse_chat(spoken: Sequence[Spoken], request: ChatRequest) -> ChatResult:
    return ChatResult(text=_said(spoken))


def parse_ocr(spoken: Sequence[Spoken], request: OcrRequest) -> OcrResult:
    """The words as they stand; to say nothing means that there is no text. Raises ParseError for a reply that was cut
    before its first word."""
    text = spoken[0].text.strip()
    if not text and spoken[0].cut:
        raise ParseError(CUT)
    return OcrResult(text=text)


def parse_toy_ocr(spoken: Sequence[Spoken], request: OcrRequest) -> OcrResult:
    """The toys were trained to say `nothing` of a picture without text. Of a sign it would be a word like any other.
    Raises ParseError for a reply that was cut so soon that it may have been about to say so."""
    text = parse_ocr(spoken, request).text
    if spoken[0].cut and NOTHING.startswith(text) and text != NOTHING:
        raise ParseError(CUT)
    return OcrResult(text="" if text == NOTHING else text)


def _said(spoken: Sequence[Spoken]) -> str:
    text = spoken[0].text.strip()
    if not text:
        raise ParseError(CUT if spoken[0].cut else "The reply is empty.")
    return text
