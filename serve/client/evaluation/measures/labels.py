"""Labels that are right: accuracy, and F1 where several may be."""

from collections.abc import Sequence

from serve.client.evaluation.measures.base import Counts, Json, Measured, mean, ratio
from serve.tasks.boxes import label_key


def label_accuracy(truths: Sequence[Json], answers: Sequence[Json | None], counts: Counts) -> list[Measured]:
    """Measure how many answers are all of the right labels and no other, and the F1 over all labels."""
    exact, hits, both = [], [], []
    for truth, answer in zip(truths, answers, strict=True):
        wanted = {label_key(label) for label in truth["labels"]}
        chosen = {label_key(label["label"]) for label in answer["labels"]} if answer is not None else set()
        exact.append(float(answer is not None and chosen == wanted))
        hits.append(2.0 * len(wanted & chosen))
        both.append(float(len(wanted) + len(chosen)))
    return [mean("accuracy", exact, counts), ratio("F1", hits, both, counts)]
