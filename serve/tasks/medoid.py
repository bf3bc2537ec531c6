"""Medoid: of several texts the one most like the others. Invents nothing: the merged text is some model's own."""

from collections.abc import Callable, Mapping, Sequence

from rapidfuzz import fuzz, utils

from serve.tasks.base import Merged, Reply
from serve.tasks.vote import merged, standing, weigh

ALIKE = 0.8  # texts this alike count as saying the same: their models support the merged one


def similarity(a: str, b: str) -> float:
    """0..1: edit similarity of the words in sorted order, case and punctuation aside; two empty texts are equal."""
    x, y = utils.default_process(a), utils.default_process(b)
    return 1.0 if x == y else fuzz.token_sort_ratio(x, y) / 100


def medoid(text: Callable[[Reply], str]) -> Callable[[Sequence[Reply], Mapping[str, float]], Merged]:
    """The reply with the highest weighted mean similarity to the others; equals (always so with two models) are
    decided by weight x confidence, then by catalogue order. Minimum Bayes risk in its simplest form."""

    def choose(replies: Sequence[Reply], given: Mapping[str, float]) -> Merged:
        weights = weigh(replies, given)
        texts = {reply.model: text(reply) for reply in replies}

        def agreement(reply: Reply) -> float:
            others = [other for other in texts if other != reply.model]
            total = sum(weights[other] for other in others)
            alike = sum(weights[other] * similarity(texts[reply.model], texts[other]) for other in others)
            return round(alike / total, 9) if total else 0.0  # rounded: equals must not be told apart by float noise

        winner = max(replies, key=lambda reply: (agreement(reply), standing(reply, weights)))
        likeness = {model: similarity(texts[winner.model], said) for model, said in texts.items()}
        backers = [model for model, value in likeness.items() if value >= ALIKE]
        deviations = {model: 1.0 - value for model, value in likeness.items()}
        return merged(winner, replies, weights, "medoid", deviations, backers)

    return choose
