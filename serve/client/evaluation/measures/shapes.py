"""Share of toy captions that name every drawn shape with its colour, and no other."""

import re
from collections.abc import Sequence

from serve.client.evaluation.measures.base import Counts, Json, Measured, mean
from serve.toy.varied.names import PALETTE, SHAPE_OTHERS

_NAMED = re.compile(rf"(?:{'|'.join(PALETTE)}) (?:{'|'.join(SHAPE_OTHERS)})")


def every_shape(truths: Sequence[Json], answers: Sequence[Json | None], counts: Counts) -> list[Measured]:
    """Measure captions of drawn scenes; returns nothing for pictures whose truth names no shapes."""
    if not all("shapes" in true for true in truths):
        return []
    values = [
        float(result is not None and sorted(_NAMED.findall(result["caption"])) == sorted(truth["shapes"]))
        for truth, result in zip(truths, answers, strict=True)
    ]
    return [mean("every shape", values, counts)]
