"""Parsers for tasks whose result is the reply's text: vqa, caption, chat, ocr. Each takes one generation."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from serve.engines.base import Generation
from serve.errors import ParseError
from serve.tasks.caption import CaptionResult
from serve.tasks.chat import ChatResult
from serve.tasks.ocr import OcrRequest
from serve.tasks.ocr_result import OcrResult
from serve.tasks.reply import CUT, TextResult
from serve.tasks.vqa import VqaResult

NOTHING = "nothing"

R = TypeVar("R", bound=TextResult)


def parse_as(result: type[R]) -> Callable[[Sequence[Generation], Any], R]:
    """Return a parser of a single generation: it raises ParseError where `result.read` does."""

    def parse(generations: Sequence[Generation], request: Any) -> R:
        return result.read(generations[0])

    return parse


parse_vqa, parse_caption = parse_as(VqaResult), parse_as(CaptionResult)
parse_chat, parse_text = parse_as(ChatResult), parse_as(OcrResult)


def parse_toy_ocr(generations: Sequence[Generation], request: OcrRequest) -> OcrResult:
    """Parse a toy's reply, which is `nothing` for an image without text. Raises ParseError for a reply that was cut
    while it could still become `nothing`."""
    text = OcrResult.read(generations[0]).text
    if generations[0].cut and NOTHING.startswith(text) and text != NOTHING:
        raise ParseError(CUT)
    return OcrResult(text="" if text == NOTHING else text)
