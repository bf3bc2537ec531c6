"""Character error rate: edits over the characters of the true texts."""

from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

from serve.client.evaluation.measures.base import Counts, Json, Measured, mean, ratio


def character_errors(truths: Sequence[Json], answers: Sequence[Json | None], counts: Counts) -> list[Measured]:
    """Measure the character error rate over the whole set, and how many texts are exact.

    Runs of white space are one space; case and punctuation count. Without a reply every character is an error.
    """
    pairs = [
        (tidy(truth["text"]), tidy(result["text"]) if result is not None else None)
        for truth, result in zip(truths, answers, strict=True)
    ]
    errors = [float(Levenshtein.distance(wanted, text or "")) for wanted, text in pairs]
    characters = [float(len(wanted)) for wanted, _ in pairs]
    return [
        ratio("CER", errors, characters, counts, lower=True),
        mean("exact", [float(wanted == text) for wanted, text in pairs], counts),
    ]


def tidy(text: str) -> str:
    return " ".join(text.split())
