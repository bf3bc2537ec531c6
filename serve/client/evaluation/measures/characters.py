"""Character error rate: of all characters to be read, how many had to be put right."""

from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

from serve.client.evaluation.measures.base import Counts, Json, Measured, mean, ratio


def character_errors(truths: Sequence[Json], answers: Sequence[Json | None], counts: Counts) -> list[Measured]:
    """Insertions, deletions and substitutions over characters, of the whole set; and how many texts are exact.

    Runs of white space are one space; case and punctuation count. Where nothing came, every character is an error.
    """
    pairs = [
        (tidy(true["text"]), tidy(said["text"]) if said is not None else None)
        for true, said in zip(truths, answers, strict=True)
    ]
    errors = [float(Levenshtein.distance(true, said or "")) for true, said in pairs]
    characters = [float(len(true)) for true, _ in pairs]
    return [
        ratio("CER", errors, characters, counts, lower=True),
        mean("exact", [float(true == said) for true, said in pairs], counts),
    ]


def tidy(text: str) -> str:
    return " ".join(text.split())
