"""Several readings of one text as one, by ROVER's vote (Fiscus 1997): lines are aligned, then words, then letters."""

from collections.abc import Callable, Mapping, Sequence

from rapidfuzz.distance import Levenshtein

from serve.tasks.base import MergeRule
from serve.tasks.merging.agreement import agreed, standing, weigh
from serve.tasks.merging.alignment import LETTERS, Slot, Work, network
from serve.tasks.merging.medoid import backers, comparable, text_deviations
from serve.tasks.reply import Merged, Reply, Result, text_of

COMPARED = 20_000_000  # pairs of words, or what takes as long, in one merge: about a second
LONGEST_WORD = 64  # letters: what is longer is no word, and is not voted on letter by letter


def likeness(a: str, b: str) -> float:
    """0..1: 1 - the edit distance in letters over the longer text's length; two empty texts are equal."""
    return float(Levenshtein.normalized_similarity(a, b))


def rover(result: Callable[[str], Result]) -> MergeRule:
    """Make a rule that takes at every place the word with the most weight x confidence, or none where none has more.

    Where no word has more than half and three models or more read one there, its letters are voted on in the same
    way. With two models the surer one decides wherever they differ. A reply that is more like all replies than the text
    from the vote is the merged text in its place. Ties go to the vote, the surer model, the earlier in the catalogue.
    Deviations are edit distances in letters. result: makes the task's result of a text.
    """

    def choose(replies: Sequence[Reply], given: Mapping[str, float]) -> Merged:
        weights = weigh(replies, given)
        says = [standing(reply, weights) for reply in replies]
        says = says if any(says) else [1.0] * len(replies)
        texts = [text_of(reply) for reply in replies]
        surest = sorted(range(len(replies)), key=lambda at: -says[at])
        merged = _central([*vote(texts, says), *(texts[at] for at in surest)], texts, says)
        own = next((replies[at].result for at in surest if texts[at] == merged), None)
        *short, merged_short = comparable([*texts, merged])
        deviations = text_deviations(dict(zip(weights, short, strict=True)), merged_short, likeness)
        nearest = min(range(len(replies)), key=lambda at: (round(deviations[replies[at].model], 9), -says[at]))
        camp = backers(deviations) or [replies[nearest].model]
        return agreed(own or result(merged), "rover", weights, deviations, [camp])

    return choose


def vote(texts: Sequence[str], says: Sequence[float]) -> list[str]:
    """Return the text from the vote, in a list; an empty list where the texts are too long to align.

    says: how much each text's vote counts. Lines keep their breaks; other spaces become one.
    """
    pages = [[" ".join(line.split()) for line in text.splitlines() if line.strip()] for text in texts]
    work = Work(COMPARED)
    slots = _aligned(pages, says, work)
    if slots is None:
        return []
    lines: list[str] = []
    for slot in slots:
        there = sum(says[at] for at in slot)
        if 2 * there < sum(says):
            continue
        voted_words = _words([line.split() for line in slot.values()], [says[at] for at in slot], work)
        if voted_words is None:
            return []
        lines.append(" ".join(voted_words))
    return ["\n".join(lines)]


def _words(readings: Sequence[Sequence[str]], says: Sequence[float], work: Work) -> list[str] | None:
    slots = _aligned(readings, says, work)
    return None if slots is None else [word for slot in slots if (word := _chosen(slot, says, work))]


def _chosen(slot: Slot, says: Sequence[float], work: Work) -> str:
    """Return a slot's word, "" for none: the majority's, else (while work is left) a vote on its letters."""
    word, backing = _plurality(slot, says)
    if 2 * backing > sum(says) or len(slot) < 3 or not word or max(map(len, slot.values())) > LONGEST_WORD:
        return word
    own = [says[at] for at in slot]
    letters = _aligned([list(reading) for reading in slot.values()], own, work)
    if letters is None:
        return word
    return "".join(_plurality(letter, own)[0] for letter in letters)


def _plurality(slot: Slot, says: Sequence[float]) -> tuple[str, float]:
    """Return the item with the most votes ("" is none) and these. Ties go to the surest reading, then the first."""
    camps: dict[str, list[float]] = {}
    for at, count in enumerate(says):
        camps.setdefault(slot.get(at, ""), []).append(count)
    word = max(camps, key=lambda item: (round(sum(camps[item]), 9), max(camps[item])))
    return word, sum(camps[word])


def _aligned(sequences: Sequence[Sequence[str]], says: Sequence[float], work: Work) -> list[Slot] | None:
    """Align sequences into slots, each in the order of the sequences; None where there is too much to compare.

    The most central sequence is the skeleton; the others follow from the most like it to the least, of equals the
    surest, so that their order does not matter.
    """
    if all(items == sequences[0] for items in sequences):
        return [dict.fromkeys(range(len(sequences)), item) for item in sequences[0]]
    joined = comparable(["\n".join(items) for items in sequences])
    if not work.spend(sum(map(len, joined)) ** 2 // LETTERS):
        return None
    near = [sum(s * likeness(text, other) for s, other in zip(says, joined, strict=True)) for text in joined]
    first = max(range(len(joined)), key=lambda at: (round(near[at], 9), says[at]))
    like = [round(likeness(joined[first], text), 9) for text in joined]
    order = sorted(range(len(joined)), key=lambda at: (at != first, -like[at], -says[at]))
    slots = network([sequences[at] for at in order], work)
    return None if slots is None else [dict(sorted((order[at], item) for at, item in slot.items())) for slot in slots]


def _central(candidates: Sequence[str], texts: Sequence[str], says: Sequence[float]) -> str:
    """Return the candidate with the highest weighted likeness to all texts; the first of equals."""
    short = dict(zip([*candidates, *texts], comparable([*candidates, *texts]), strict=True))

    def near(candidate: str) -> float:
        return round(sum(s * likeness(short[candidate], short[text]) for s, text in zip(says, texts, strict=True)), 9)

    return max(candidates, key=near)
