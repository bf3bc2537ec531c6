"""Replies for FakeEngine of a model that sees the pictures of a check, in any contract, with or without a fault."""

import re
from collections.abc import Callable

from serve.checking.questions import CheckQuestion, check_questions
from serve.engines.base import Prompt
from serve.media.image import undecoded_image
from serve.models.contracts import Contract, Size

Box = tuple[float, ...]
Move = Callable[[Box, Size], Box]


class SeeingModel:
    """A model's replies: a picture is known by the digest of its file, what is asked by the words of the prompt.

    writes: the contract of its boxes. move: what happens to each box. blind: it answers without the picture. answers:
    whether it finds boxes when it is asked in this way, by the prompt's text.
    """

    def __init__(
        self,
        writes: Contract,
        move: Move = lambda box, size: box,
        *,
        seed: int = 0,
        blind: bool = False,
        answers: Callable[[str], bool] = lambda text: True,
    ) -> None:
        self.writes, self.move, self.blind, self.answers = writes, move, blind, answers
        self.by_picture: dict[str | None, list[CheckQuestion]] = {}
        for task in ("detect", "vqa", "ocr"):
            for question in check_questions(task, seed):
                self.by_picture.setdefault(undecoded_image(question.load()).digest, []).append(question)

    def __call__(self, prompt: Prompt) -> str:
        assert prompt.image is not None
        for question in self.by_picture[prompt.image.digest]:
            if question.task != "detect":
                return "2" if self.blind else str(question.truth)
            (label,), size = question.fields["labels"], question.size
            if re.search(rf"\b{label}\b", prompt.text):
                assert not isinstance(question.truth, str)
                if not self.answers(prompt.text):
                    return "I do not know."
                box = tuple(0.3 * side for side in size) + tuple(0.7 * side for side in size)
                return self.writes.format([(label, box if self.blind else self.move(question.truth, size))], size)
        raise AssertionError(prompt.text)


def ninety_off(box: Box, size: Size) -> Box:
    """Move a box by ninety pixels to the right and down, within the picture."""
    return tuple(min(edge + 90, side) for edge, side in zip(box, size * 2, strict=True))
