"""Parsers for tasks whose result is the reply's text: vqa, caption, chat, ocr. Each takes one generation."""

from collections.abc import Sequence

from serve.engines.base import Generation
from serve.errors import ParseError
from serve.tasks.base import CUT
from serve.tasks.caption import CaptionRequest, CaptionResult
from serve.tasks.chat import ChatRequest, ChatResult
from serve.tasks.ocr import OcrRequest, OcrResult
from serve.tasks.vqa import VqaRequest, VqaResult

NOTHING = "nothing"


def parse_vqa(generations: Sequence[Generation], request: VqaRequest) -> VqaResult:
    return VqaResult.read(generations[0])


def parse_caption(generations: Sequence[Generation], request: CaptionRequest) -> CaptionResult:
    return CaptionResult.read(generations[0])


def parse_chat(generations: Sequence[Generation], request: ChatRequest) -> ChatResult:
    return ChatResult.read(generations[0])


def parse_text(generations: Sequence[Generation], request: OcrRequest) -> OcrResult:
    return OcrResult.read(generations[0])


def parse_toy_ocr(generations: Sequence[Generation], request: OcrRequest) -> OcrResult:
    """Parse a toy's reply, which is `nothing` for an image without text. Raises ParseError for a reply that was cut
    while it could still become `nothing`."""
    text = parse_text(generations, request).text
    if generations[0].cut and NOTHING.startswith(text) and text != NOTHING:
        raise ParseError(CUT)
    return OcrResult(text="" if text == NOTHING else text)
