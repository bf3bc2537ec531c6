"""Several readings of one text as one, by ROVER's vote (Fiscus 1997): lines are aligned, then words, then letters."""

from collections.abc import Callable, Mapping, Sequence

from rapidfuzz.distance import Levenshtein

from serve.tasks.agreement import agreed, standing, weigh
from serve.tasks.alignment import Slot, network
from serve.tasks.base import Merged, MergeRule, Reply, Result
from serve.tasks.medoid import backers, strayed

LONGEST_WORD = 64  # letters: what is longer is no word, and is not voted on letter by letter


def likeness(a: str, b: str) -> float:
    """0..1: 1 - the edit distance in letters over the longer text's length; two empty texts are equal."""
    return float(Levenshtein.normalized_similarity(a, b))


def rover(text: Callable[[Reply], str], result: Callable[[str], Result]) -> MergeRule:
    """At every place the word with the most weight x confidence behind it, or nothing where that has more.

    Where no word has more than half and three models or more read one there, its letters are voted on in the same
    way. With two models the surer one decides wherever they differ. The vote is held against the replies themselves:
    one that all replies are more like than what the vote made is the merged text. Ties: the vote, the surer model,
    the earlier in the catalogue. Deviations are edit distances in letters.
    """

    def choose(replies: Sequence[Reply], given: Mapping[str, float]) -> Merged:
        weights = weigh(replies, given)
        says = [standing(reply, weights) for reply in replies]
        says = says if any(says) else [1.0] * len(replies)
        texts = [text(reply) for reply in replies]
        surest = sorted(range(len(replies)), key=lambda at: -says[at])
        merged = _central([*vote(texts, says), *(texts[at] for at in surest)], texts, says)
        own = next((replies[at].result for at in surest if texts[at] == merged), None)
        deviations = strayed({reply.model: said for reply, said in zip(replies, texts, strict=True)}, merged, likeness)
        camp = backers(deviations) or [min(deviations, key=lambda model: deviations[model])]
        return agreed(own or result(merged), "rover", weights, deviations, [camp])

    return choose


def vote(texts: Sequence[str], says: Sequence[float]) -> list[str]:
    """The text that the vote makes, in a list; an empty list where the texts are too long to align.

    says: how much each text's vote counts. Lines keep their breaks; other spaces become one.
    """
    pages = [[" ".join(line.split()) for line in text.splitlines() if line.strip()] for text in texts]
    slots = _aligned(pages, says)
    if slots is None:
        return []
    lines: list[str] = []
    for slot in slots:
        there = sum(says[at] for at in slot)
        if 2 * there < sum(says):
            continue
        words = _words([line.split() for line in slot.values()], [says[at] for at in slot])
        if words is None:
            return []
        lines.append(" ".join(words))
    return ["\n".join(lines)]


def _words(readings: Sequence[Sequence[str]], says: Sequence[float]) -> list[str] | None:
    slots = _aligned(readings, says)
    return None if slots is None else [word for slot in slots if (word := _chosen(slot, says))]


def _chosen(slot: Slot, says: Sequence[float]) -> str:
    """One place's word; empty where nothing stands there."""
    word, backing = _plurality(slot, says)
    if 2 * backing > sum(says) or len(slot) < 3 or not word or max(map(len, slot.values())) > LONGEST_WORD:
        return word
    own = [says[at] for at in slot]
    letters = _aligned([list(reading) for reading in slot.values()], own)
    assert letters is not None
    return "".join(_plurality(letter, own)[0] for letter in letters)


def _plurality(slot: Slot, says: Sequence[float]) -> tuple[str, float]:
    """What most say stands there, and how much they say. A tie goes to the surest single reading, then to the first."""
    camps: dict[str, list[float]] = {}
    for at, count in enumerate(says):
        camps.setdefault(slot.get(at, ""), []).append(count)
    word = max(camps, key=lambda said: (round(sum(camps[said]), 9), max(camps[said])))
    return word, sum(camps[word])


def _aligned(sequences: Sequence[Sequence[str]], says: Sequence[float]) -> list[Slot] | None:
    """The network's slots, each in the order of the sequences. The most central sequence is the skeleton, the others
    follow from the most like it to the least, so that it hardly matters in which order they are given."""
    joined = ["\n".join(items) for items in sequences]
    near = [sum(s * likeness(one, other) for s, other in zip(says, joined, strict=True)) for one in joined]
    first = max(range(len(joined)), key=lambda at: (round(near[at], 9), says[at]))
    order = sorted(range(len(joined)), key=lambda at: (at != first, -round(likeness(joined[first], joined[at]), 9)))
    slots = network([sequences[at] for at in order])
    return None if slots is None else [dict(sorted((order[at], item) for at, item in slot.items())) for slot in slots]


def _central(candidates: Sequence[str], texts: Sequence[str], says: Sequence[float]) -> str:
    """The candidate that all texts are most like; the first of equals."""

    def near(candidate: str) -> float:
        return round(sum(s * likeness(candidate, said) for s, said in zip(says, texts, strict=True)), 9)

    return max(candidates, key=near)
