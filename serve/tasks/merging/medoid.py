"""Medoid: of several texts the one most like the others. Invents nothing: the merged text is some model's own."""

from collections.abc import Callable, Mapping, Sequence

from rapidfuzz import fuzz, utils

from serve.tasks.base import Merged, MergeRule, Reply, text_of
from serve.tasks.merging.agreement import agreed, standing, weigh

Likeness = Callable[[str, str], float]  # of two texts, 0..1

COMPARED = 100_000  # letters of all texts of a merge together that are compared with each other
ALIKE = 0.8  # texts this alike count as saying the same: their models support the merged one


def similarity(a: str, b: str) -> float:
    """0..1: edit similarity of the words in sorted order, case and punctuation aside; two empty texts are equal."""
    x, y = utils.default_process(a), utils.default_process(b)
    return 1.0 if x == y else fuzz.token_sort_ratio(x, y) / 100


def in_order(a: str, b: str) -> float:
    """`similarity` of the words as they stand."""
    return fuzz.ratio(utils.default_process(a), utils.default_process(b)) / 100


def medoid(alike: Likeness = similarity) -> MergeRule:
    """The reply that all replies, itself among them, are most like in the weighted mean. Minimum Bayes risk in its
    simplest form; no other choice among the replies has a higher agreement.

    Equals are decided by the order of their words, which `similarity` does not see: the reply that most name things in
    the same order as. Then (always so with two models of one weight) by weight x confidence, then by catalogue order.
    """

    def choose(replies: Sequence[Reply], given: Mapping[str, float]) -> Merged:
        weights = weigh(replies, given)
        texts = dict(zip(weights, comparable([text_of(reply) for reply in replies]), strict=True))
        best = _most_alike(list(replies), texts, weights, alike)
        if len(best) > 1:
            best = _most_alike(best, texts, weights, in_order)
        winner = max(best, key=lambda reply: standing(reply, weights))
        assert winner.result is not None
        deviations = strayed(texts, texts[winner.model], alike)
        return agreed(winner.result, "medoid", weights, deviations, [backers(deviations)])

    return choose


def _most_alike(
    replies: Sequence[Reply], texts: Mapping[str, str], weights: Mapping[str, float], alike: Likeness
) -> list[Reply]:
    """Those of the replies that all texts are most like, in the weighted mean."""
    total = sum(weights.values())
    known: dict[frozenset[str], float] = {}  # every pair is compared once

    def likeness(a: str, b: str) -> float:
        pair = frozenset((a, b))
        if pair not in known:
            known[pair] = alike(a, b)
        return known[pair]

    def agreement(reply: Reply) -> float:
        close = sum(weights[other] * likeness(texts[reply.model], text) for other, text in texts.items())
        return round(close / total, 9)  # rounded: equals must not be told apart by float noise

    agreements = [agreement(reply) for reply in replies]
    highest = max(agreements)
    return [reply for reply, value in zip(replies, agreements, strict=True) if value == highest]


def comparable(texts: Sequence[str]) -> list[str]:
    """The texts as far as they are compared: COMPARED letters over their number. Comparing two takes time in
    proportion to the product of their lengths, and there are as many pairs as the square of their number."""
    return [text[: COMPARED // len(texts)] for text in texts]


def strayed(texts: Mapping[str, str], merged: str, alike: Likeness = similarity) -> dict[str, float]:
    """How unlike the merged text each model's is."""
    return {model: 1.0 - alike(merged, said) for model, said in texts.items()}


def backers(deviations: Mapping[str, float]) -> list[str]:
    """The models that said as good as the merged text."""
    return [model for model, value in deviations.items() if value <= 1.0 - ALIKE + 1e-9]
