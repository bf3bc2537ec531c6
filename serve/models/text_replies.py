"""Parsers for tasks whose result is the reply's text: vqa, caption, chat, ocr. Each takes one generation."""

from collections.abc import Sequence

from serve.engines.base import Generation
from serve.errors import ParseError
from serve.tasks.caption import CaptionRequest, CaptionResult
from serve.tasks.chat import ChatRequest, ChatResult
from serve.tasks.ocr import OcrRequest, OcrResult
from serve.tasks.vqa import VqaRequest, VqaResult

CUT = "The reply was cut by max_tokens before its first whole word."
NOTHING = "nothing"


def parse_vqa(generations: Sequence[Generation], request: VqaRequest) -> VqaResult:
    return VqaResult(answer=_text(generations))


def parse_caption(generations: Sequence[Generation], request: CaptionRequest) -> CaptionResult:
    return CaptionResult(caption=_text(generations))


def parse_chat(generations: Sequence[Generation], request: ChatRequest) -> ChatResult:
    return ChatResult(text=_text(generations))


def parse_text(generations: Sequence[Generation], request: OcrRequest) -> OcrResult:
    """Return the reply as the image's text; an empty reply means that there is none. Raises ParseError for a reply that
    was cut before its first word."""
    text = generations[0].text.strip()
    if not text and generations[0].cut:
        raise ParseError(CUT)
    return OcrResult(text=text)


def parse_toy_ocr(generations: Sequence[Generation], request: OcrRequest) -> OcrResult:
    """Parse a toy's reply, which is `nothing` for an image without text. Raises ParseError for a reply that was cut
    while it could still become `nothing`."""
    text = parse_text(generations, request).text
    if generations[0].cut and NOTHING.startswith(text) and text != NOTHING:
        raise ParseError(CUT)
    return OcrResult(text="" if text == NOTHING else text)


def _text(generations: Sequence[Generation]) -> str:
    text = generations[0].text.strip()
    if not text:
        raise ParseError(CUT if generations[0].cut else "The reply is empty.")
    return text
