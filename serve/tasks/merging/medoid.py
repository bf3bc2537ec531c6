"""Medoid: of several texts the one that is most like the others, so that the merged text is a model's own."""

import functools
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence

from rapidfuzz import fuzz, utils

from serve.tasks.answers import letter_signs
from serve.tasks.base import MergeRule
from serve.tasks.merging.agreement import agreed, standing, weigh
from serve.tasks.reply import Merged, Reply, text_of

Likeness = Callable[[str, str], float]  # of two texts, 0..1

COMPARED = 100_000  # letters of all texts of a merge together that are compared with each other
_LETTER = re.compile(r"\w")
ALIKE = 0.8  # texts this alike count as saying the same: their models support the merged one


def similarity(a: str, b: str) -> float:
    """Return the edit similarity of sorted words, 0..1, without case and punctuation; 1 for two empty texts."""
    x, y = _words(a), _words(b)
    return 1.0 if x == y else fuzz.token_sort_ratio(x, y) / 100


def in_order(a: str, b: str) -> float:
    """Return the edit similarity of the words in their own order, 0..1."""
    return fuzz.ratio(_words(a), _words(b)) / 100


def _words(text: str) -> str:
    """Return a text's words in lower case, without punctuation; a text without words, as a smiley, as it is."""
    if text.isascii():
        plain: str = utils.default_process(text)
    else:
        plain = _no_words().sub(" ", unicodedata.normalize("NFC", text).lower()).strip()
    return plain if _LETTER.search(plain) else text.strip()


@functools.cache
def _no_words() -> re.Pattern[str]:
    """Return what matches a character of no word. Vowels of Hindi and Thai are signs, which \\W takes for none."""
    return re.compile(rf"[^\w{letter_signs()}]")


def medoid(alike: Likeness = similarity) -> MergeRule:
    """Make a rule that takes the reply with the highest weighted mean similarity to all replies, its own among them.

    This is minimum Bayes risk in its simplest form: no other reply has a higher agreement. Ties go to the reply whose
    word order, which `similarity` ignores, is most like that of the others; then (always with two models of equal
    weight) to the higher weight x confidence, then to the earlier in the catalogue.
    """

    def choose(replies: Sequence[Reply], given: Mapping[str, float]) -> Merged:
        weights = weigh(replies, given)
        texts = dict(zip(weights, comparable([text_of(reply) for reply in replies]), strict=True))
        best = _most_alike(list(replies), texts, weights, alike)
        if len(best) > 1:
            best = _most_alike(best, texts, weights, in_order)
        winner = max(best, key=lambda reply: standing(reply, weights))
        assert winner.result is not None
        deviations = text_deviations(texts, texts[winner.model], alike)
        return agreed(winner.result, "medoid", weights, deviations, [backers(deviations)])

    return choose


def _most_alike(
    replies: Sequence[Reply], texts: Mapping[str, str], weights: Mapping[str, float], alike: Likeness
) -> list[Reply]:
    """Return the replies with the highest weighted mean likeness to all texts."""
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
    """Cut each text to COMPARED letters over the number of texts.

    Comparing two takes time in proportion to the product of their lengths, for as many pairs as their number squared.
    """
    return [text[: COMPARED // len(texts)] for text in texts]


def text_deviations(texts: Mapping[str, str], merged: str, alike: Likeness = similarity) -> dict[str, float]:
    """Return the distance of each model's text to the merged one, 0..1."""
    return {model: 1.0 - alike(merged, text) for model, text in texts.items()}


def backers(deviations: Mapping[str, float]) -> list[str]:
    """Return the models whose text is nearly the merged one."""
    return [model for model, value in deviations.items() if value <= 1.0 - ALIKE + 1e-9]
