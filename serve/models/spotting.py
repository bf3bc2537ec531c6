"""Text spotting: reading that also says where each line stands, of models that were trained to."""

from collections.abc import Sequence
from dataclasses import replace

from serve.engines.base import Generation, Prompt
from serve.models.base import Skill, Turn, task_sampling
from serve.models.contracts import Contract
from serve.models.instructed import chat_messages
from serve.tasks.boxes import LabelledBox
from serve.tasks.ocr import OcrRequest
from serve.tasks.ocr_result import OcrResult

MAX_TOKENS = 4096
"""A page of small print, with four numbers for each line."""


def spotting_skill(read: Skill, contract: Contract, words: str, system: str | None = None) -> Skill:
    """Return the skill of reading that spots text where a request has `boxes`. read: the skill for the text alone.

    contract: of the boxes, in JSON with each line's text beside. words: the instruction; system: as in `worded_skill`.
    """

    def ask(request: OcrRequest) -> list[Prompt]:
        if not request.boxes:
            return read.ask(request)
        turns = [] if system is None else [Turn("system", system)]
        text = chat_messages([*turns, Turn("user", words, has_image=True)])
        return [Prompt(text, request.image, replace(task_sampling(request, MAX_TOKENS), logprobs=True))]

    def parse(generations: Sequence[Generation], request: OcrRequest) -> OcrResult:
        if not request.boxes:
            result = read.parse(generations, request)
            assert isinstance(result, OcrResult)
            return result
        decoded = contract.decode(generations[0], (request.image.width, request.image.height))
        decoded.require()
        return lines_result(decoded.boxes)

    def by(other: Contract) -> Skill:
        return spotting_skill(read, other, words, system)

    return replace(read, ask=ask, parse=parse, contract=contract, by=by, spots=True)


def lines_result(boxes: Sequence[LabelledBox]) -> OcrResult:
    """Return lines with their boxes, in the order in which they were written, as a result. Those without text are left
    out."""
    lines = [box.model_copy(update={"label": text}) for box in boxes if (text := " ".join(box.label.split()))]
    return OcrResult(text="\n".join(line.label for line in lines), boxes=lines)
