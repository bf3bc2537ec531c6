"""Classification by a question for each label: `Is there a red circle?`"""

from collections.abc import Callable, Sequence

from serve.engines.base import Generation, Prompt
from serve.errors import ParseError
from serve.models.base import Skill
from serve.tasks.answers import normalise
from serve.tasks.boxes import bare_phrase
from serve.tasks.classify import ClassifyRequest
from serve.tasks.scored_labels import ClassifyResult, ScoredLabel

IS_THERE = "Is there {}?"
_PLAIN = {"yes": True, "no": False}


def classify_by_questions(ask: Callable[[ClassifyRequest, str], list[Prompt]]) -> Skill:
    """Return the skill of a model that answers questions: is each label in the image? ask: a request and a question ->
    the prompt.

    A label's score is the probability of yes, as far as the answer's tokens tell. The right labels are those with yes;
    where one is to be chosen, it is the one with the highest score.
    """

    def ask_each(request: ClassifyRequest) -> list[Prompt]:
        return [prompt for label in request.labels for prompt in ask(request, IS_THERE.format(_with_article(label)))]

    def parse(generations: Sequence[Generation], request: ClassifyRequest) -> ClassifyResult:
        answers = [_read(generation) for generation in generations]
        labels = [
            ScoredLabel(label=label, score=score) for label, (_, score) in zip(request.labels, answers, strict=True)
        ]
        if request.multiple:
            right = [label for label, (yes, _) in zip(labels, answers, strict=True) if yes]
            return ClassifyResult(labels=right, multiple=True)
        best = max(labels, key=lambda label: label.score)
        if sum(label.score == best.score for label in labels) > 1:
            raise ParseError("The answers do not tell one label from another.")
        return ClassifyResult(labels=[best])

    return Skill(ask_each, parse, prompts=lambda request: len(request.labels), basis="prompted")


def _read(generation: Generation) -> tuple[bool, float]:
    """Return whether it is yes, and how probable yes is. Raises ParseError for an answer that is neither yes nor no."""
    answer = normalise(generation.text).partition(" ")[0]
    if answer not in _PLAIN:
        raise ParseError(f"The answer {generation.text.strip()[:80]!r} is neither yes nor no.")
    confidence = max(0.5, generation.confidence())  # the likelier of the two was said
    return (True, confidence) if _PLAIN[answer] else (False, 1.0 - confidence)


def _with_article(label: str) -> str:
    phrase = bare_phrase(label)
    return f"an {phrase}" if phrase[:1].casefold() in tuple("aeiou") else f"a {phrase}"
