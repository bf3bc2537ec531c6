"""The text of an image, and where its lines stand."""

from typing import Any, Self

from pydantic import Field

from serve.engines.base import Generation
from serve.errors import ParseError
from serve.tasks.boxes import LabelledBox
from serve.tasks.reply import CUT, TextResult


class OcrResult(TextResult):
    """The text, its lines separated by newlines; empty where there is none.

    boxes: where a request asks for them, the lines with their places: a label is a line's text.
    """

    text: str
    boxes: list[LabelledBox] | None = Field(default=None, exclude_if=lambda boxes: boxes is None)

    @classmethod
    def read(cls, generation: Generation, request: Any = None) -> Self:
        """Return what a model wrote as the image's text. Raises ParseError for a reply cut before its first word."""
        text = generation.text.strip()
        if not text and generation.cut:
            raise ParseError(CUT)
        return cls(text=text)
