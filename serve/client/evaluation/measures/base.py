"""A measured number and its values on resampled pictures, for confidence intervals."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Json = dict[str, Any]
Floats = np.ndarray[Any, np.dtype[np.float64]]
Counts = np.ndarray[Any, np.dtype[np.uint8]]
"""[resamples, items]: how often each item is drawn in each resample."""
AT_ONCE = 100  # resamples: COCO's validation set a thousand times over need not be in memory together


@dataclass(frozen=True)
class Measured:
    """value: over all items. resampled: over each resample of them, [resamples]. All times 100 where `hundredfold`."""

    name: str
    value: float
    resampled: Floats
    lower_is_better: bool = False


Measure = Callable[[Sequence[Json], Sequence[Json | None], Counts], list[Measured]]
"""(what is true of each item, each item's result or None where none came, counts) -> one or more numbers."""


def ratio(name: str, parts: Sequence[float], of: Sequence[float], counts: Counts, *, lower: bool = False) -> Measured:
    """Measure 100 x the sum of `parts` over the sum of `of`; 0 where that is 0."""
    above, below = np.array(parts, dtype=np.float64), np.array(of, dtype=np.float64)
    resampled = _over(weighted(counts, above), weighted(counts, below))
    return Measured(name, float(_over(above.sum(), below.sum())), resampled, lower)


def mean(name: str, values: Sequence[float], counts: Counts) -> Measured:
    return ratio(name, values, [1.0] * len(values), counts)


def weighted(counts: Counts, values: Floats) -> Floats:
    """Return the sum of the values in each resample."""
    slabs = [counts[at : at + AT_ONCE].astype(np.float64) @ values for at in range(0, len(counts), AT_ONCE)]
    return np.concatenate(slabs) if slabs else np.zeros(0)


def _over(above: Any, below: Any) -> Any:
    return 100.0 * np.divide(above, below, out=np.zeros_like(above), where=np.asarray(below) > 0)
