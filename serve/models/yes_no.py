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

    The right labels are those with yes, each scored by the probability of yes, as far as the answer's tokens tell.
    Where one is to be chosen, it is the one with the highest probability, and its score is that of this label being
    right and no other: a model that says yes to two of them is not sure of either.
    """

    def ask_each(request: ClassifyRequest) -> list[Prompt]:
        return [prompt for label in request.labels for prompt in ask(request, IS_THERE.format(_with_article(label)))]

    def parse(generations: Sequence[Generation], request: ClassifyRequest) -> ClassifyResult:
        answers = [_read(generation) for generation in generations]
        if request.multiple:
            pairs = zip(request.labels, answers, strict=True)
            right = [ScoredLabel(label=label, score=score) for label, (yes, score) in pairs if yes]
            return ClassifyResult(labels=right, multiple=True)
        scores = [score for _, score in answers]
        if scores.count(max(scores)) > 1:
            raise ParseError("The answers do not tell one label from another.")
        best = scores.index(max(scores))
        return ClassifyResult(labels=[ScoredLabel(label=request.labels[best], score=_alone(scores, best))])

    return Skill(ask_each, parse, prompts=lambda request: len(request.labels), basis="prompted")


def _read(generation: Generation) -> tuple[bool, float]:
    """Return whether it is yes, and how probable yes is. Raises ParseError for an answer that is neither yes nor no."""
    answer = normalise(generation.text).partition(" ")[0]
    if answer not in _PLAIN:
        raise ParseError(f"The answer {generation.text.strip()[:80]!r} is neither yes nor no.")
    confidence = max(0.5, generation.confidence())  # the likelier of the two was said
    return (True, confidence) if _PLAIN[answer] else (False, 1.0 - confidence)


def _alone(scores: Sequence[float], at: int) -> float:
    """Return the probability that this label is right and the others are not, where at most one is."""
    odds = [score / max(1e-6, 1.0 - score) for score in scores]
    return odds[at] / (1.0 + sum(odds))


def _with_article(label: str) -> str:
    phrase = bare_phrase(label)
    return f"an {phrase}" if phrase[:1].casefold() in tuple("aeiou") else f"a {phrase}"
