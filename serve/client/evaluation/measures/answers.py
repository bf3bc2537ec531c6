"""VQA accuracy (Antol et al. 2015, visualqa.org/evaluation.html) and plain equality of words."""

from collections.abc import Sequence

from serve.client.evaluation.measures.base import Counts, Json, Measured, mean
from serve.tasks.answers import normalise

ENOUGH = 4  # people: three who agree with the answer make it right, so leave-one-out takes a fourth


def vqa_accuracy(truths: Sequence[Json], answers: Sequence[Json | None], counts: Counts) -> list[Measured]:
    values = [
        accuracy(said["answer"], true["answers"]) if said is not None else 0.0
        for true, said in zip(truths, answers, strict=True)
    ]
    return [mean("VQA accuracy", values, counts)]


def accuracy(answer: str, people: Sequence[str]) -> float:
    """The official rule: min(people who said it / 3, 1), averaged over leaving each of the people out.

    Both sides are normalised as in merging. Fewer than four answers are no crowd but a list of what is right: there
    it is 1 for any of them.
    """
    said, wanted = normalise(answer), [normalise(one) for one in people]
    same = wanted.count(said)
    if len(wanted) < ENOUGH:
        return float(same > 0)
    others = [same - (one == said) for one in wanted]
    return sum(min(count / 3, 1.0) for count in others) / len(wanted)


def exact(truths: Sequence[Json], answers: Sequence[Json | None], counts: Counts) -> list[Measured]:
    """Any of the right answers, word for word: case, articles and a final stop aside."""
    values = [
        float(said is not None and normalise(said["text"]) in map(normalise, true["answers"]))
        for true, said in zip(truths, answers, strict=True)
    ]
    return [mean("exact", values, counts)]
