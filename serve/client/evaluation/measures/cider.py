"""CIDEr-D (Vedantam, Zitnick and Parikh, arXiv 1411.5726): similarity to references by tf-idf of word n-grams."""

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
    references_of: Callable[[Json], list[str]], text_of: Callable[[Json], str]
) -> Callable[[Sequence[Json], Sequence[Json | None], Counts], list[Measured]]:
    """Make the measure: 100 x the mean over pictures, as papers give it, at most 1000. No reply scores 0.

    references_of: the references of an item's truth. text_of: the text of a result.
    """

    def measured(truths: Sequence[Json], answers: Sequence[Json | None], counts: Counts) -> list[Measured]:
        references = [references_of(truth) for truth in truths]
        values = scores(["" if result is None else text_of(result) for result in answers], references)
        return [mean("CIDEr-D", values, counts)]

    return measured


def scores(texts: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Score one text per picture against its references, 0..10 per picture.

    Document frequencies are counted over these references themselves, so a set of one picture scores 0.
    """
    seen = Counter(gram for some in references for gram in {gram for text in some for gram in grams(text)})
    weigh = Weigher(seen, len(references))
    return [_score(weigh, text, some) for text, some in zip(texts, references, strict=True)]


def caption_words(text: str) -> list[str]:
    """Split into lower-case words without punctuation, which is near the Penn Treebank tokens of the original."""
    return _WORD.findall(text.lower())


@functools.lru_cache(maxsize=65536)
def grams(text: str) -> Counter[Gram]:
    """Count the n-grams of one to four words."""
    words = caption_words(text)
    return Counter(tuple(words[at : at + n]) for n in range(1, LONGEST + 1) for at in range(len(words) - n + 1))


class Weigher:
    """A tf-idf weighting of n-grams. seen: in how many pictures' references each one is."""

    def __init__(self, seen: Counter[Gram], pictures: int) -> None:
        self._seen, self._log = seen, math.log(max(1, pictures))

    def vectors(self, text: str) -> list[dict[Gram, float]]:
        """Return a vector of weights for each length of n-gram, 1 to 4."""
        vectors: list[dict[Gram, float]] = [{} for _ in range(LONGEST)]
        for gram, count in grams(text).items():
            vectors[len(gram) - 1][gram] = count * (self._log - math.log(max(1, self._seen[gram])))
        return vectors


def _score(weigh: Weigher, text: str, references: Sequence[str]) -> float:
    own = weigh.vectors(text)
    likeness = [_like(own, weigh.vectors(other)) * _as_long(text, other) for other in references]
    return 10.0 * sum(likeness) / len(likeness) if likeness else 0.0


def _like(own: Sequence[dict[Gram, float]], other: Sequence[dict[Gram, float]]) -> float:
    """Return the mean cosine over lengths; repetitions beyond the reference's do not count."""
    total = 0.0
    for mine, theirs in zip(own, other, strict=True):
        lengths = _norm(mine.values()) * _norm(theirs.values())
        if lengths > 0:
            total += sum(min(mine[gram], theirs[gram]) * theirs[gram] for gram in mine if gram in theirs) / lengths
    return total / LONGEST


def _as_long(text: str, other: str) -> float:
    return math.exp(-((len(caption_words(text)) - len(caption_words(other))) ** 2) / (2 * SIGMA**2))


def _norm(values: Iterable[float]) -> float:
    return math.sqrt(sum(value * value for value in values))
