"""VQA accuracy (Antol et al. 2015, visualqa.org/evaluation.html) and plain equality of words."""

from collections.abc import Sequence

from serve.client.evaluation.measures.base import Counts, Json, Measured, mean
from serve.tasks.answers import normalise

ENOUGH = 4  # people: three who agree with the answer make it right, so leave-one-out takes a fourth


def vqa_accuracy(truths: Sequence[Json], answers: Sequence[Json | None], counts: Counts) -> list[Measured]:
    values = [
        0.0
        if result is None
        else accuracy(result["answer"], truth["answers"])
        if "answers" in truth
        else float(normalise(result["answer"]) in map(normalise, truth["accepted"]))
        for truth, result in zip(truths, answers, strict=True)
    ]
    return [mean("VQA accuracy", values, counts)]


def accuracy(answer: str, people: Sequence[str]) -> float:
    """Return the official accuracy: min(people who gave the answer / 3, 1), averaged over leaving out each person.

    Both sides are normalised as in merging. With fewer than four answers, any of them is right.
    """
    answer, wanted = normalise(answer), [normalise(other) for other in people]
    same = wanted.count(answer)
    if len(wanted) < ENOUGH:
        return float(same > 0)
    others = [same - (other == answer) for other in wanted]
    return sum(min(count / 3, 1.0) for count in others) / len(wanted)


def exact(truths: Sequence[Json], answers: Sequence[Json | None], counts: Counts) -> list[Measured]:
    """Measure how many replies are one of the right answers, apart from case, articles and a final stop."""
    values = [
        float(result is not None and normalise(result["text"]) in map(normalise, truth["answers"]))
        for truth, result in zip(truths, answers, strict=True)
    ]
    return [mean("exact", values, counts)]
