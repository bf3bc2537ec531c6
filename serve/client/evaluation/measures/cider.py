"""CIDEr-D (Vedantam, Zitnick and Parikh, arXiv 1411.5726): words that people use of this picture, and of few others."""

import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from serve.client.evaluation.measures.base import Counts, Json, Measured, mean

LONGEST = 4
SIGMA = 6.0
_WORD = re.compile(r"[^\W_]+(?:['’.-][^\W_]+)*")
Gram = tuple[str, ...]


def cider_d(
    wanted: Callable[[Json], list[str]], said: Callable[[Json], str]
) -> Callable[[Sequence[Json], Sequence[Json | None], Counts], list[Measured]]:
    """The measure over references `wanted` in what is true and the text `said` in a result.

    100 x the mean over pictures, as papers give it: 1000 is the most. No reply scores 0.
    """

    def measured(truths: Sequence[Json], answers: Sequence[Json | None], counts: Counts) -> list[Measured]:
        references = [wanted(true) for true in truths]
        values = scores(["" if one is None else said(one) for one in answers], references)
        return [mean("CIDEr-D", values, counts)]

    return measured


def scores(texts: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """One text per picture and its references -> 0..10 per picture.

    In how many pictures a phrase occurs is counted over these references themselves, so a set of one picture scores 0.
    """
    seen = Counter(gram for some in references for gram in {gram for text in some for gram in grams(text)})
    weigh = Weigher(seen, len(references))
    return [_score(weigh, text, some) for text, some in zip(texts, references, strict=True)]


def words(text: str) -> list[str]:
    """Lower-case words without punctuation: near the Penn Treebank tokens of the original, without its Java."""
    return _WORD.findall(text.lower())


@functools.lru_cache(maxsize=65536)
def grams(text: str) -> Counter[Gram]:
    """How often each run of one to four words occurs."""
    said = words(text)
    return Counter(tuple(said[at : at + n]) for n in range(1, LONGEST + 1) for at in range(len(said) - n + 1))


class Weigher:
    """tf-idf: how often a run of words is in a text, times the log of how few pictures' references have it."""

    def __init__(self, seen: Counter[Gram], pictures: int) -> None:
        self._seen, self._log = seen, math.log(max(1, pictures))

    def vectors(self, text: str) -> list[dict[Gram, float]]:
        """One vector for runs of each length."""
        found: list[dict[Gram, float]] = [{} for _ in range(LONGEST)]
        for gram, count in grams(text).items():
            found[len(gram) - 1][gram] = count * (self._log - math.log(max(1, self._seen[gram])))
        return found


def _score(weigh: Weigher, text: str, references: Sequence[str]) -> float:
    own = weigh.vectors(text)
    likeness = [_like(own, weigh.vectors(other)) * _as_long(text, other) for other in references]
    return 10.0 * sum(likeness) / len(likeness) if likeness else 0.0


def _like(own: Sequence[dict[Gram, float]], other: Sequence[dict[Gram, float]]) -> float:
    """The mean over lengths of the cosine; what a text repeats beyond the reference does not count."""
    total = 0.0
    for mine, theirs in zip(own, other, strict=True):
        lengths = _norm(mine.values()) * _norm(theirs.values())
        if lengths > 0:
            total += sum(min(mine[gram], theirs[gram]) * theirs[gram] for gram in mine if gram in theirs) / lengths
    return total / LONGEST


def _as_long(text: str, other: str) -> float:
    return math.exp(-((len(words(text)) - len(words(other))) ** 2) / (2 * SIGMA**2))


def _norm(values: Iterable[float]) -> float:
    return math.sqrt(sum(value * value for value in values))
