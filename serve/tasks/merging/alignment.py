"""Alignment of several sequences of lines, words or letters into slots: the items at the same place in each."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import Levenshtein

Costs = np.ndarray[Any, np.dtype[np.float64]]

Slot = dict[int, str]
"""The items at one place, by sequence; a sequence that has nothing there is absent."""

GAP = 1.0
LETTERS = 1000  # pairs of letters in long items take as long as one pair of words
CALL = 500  # comparing two sequences at all takes as long as comparing so many of their items
MOST = 4_000_000
"""Sequences whose lengths multiply to more are not aligned: that would take hundreds of megabytes."""


class Work:
    """A budget of comparisons, in pairs of items: a merge stops aligning when it is used up.

    It counts work and no time, so that the same texts are merged in the same way on every machine.
    """

    def __init__(self, pairs: int) -> None:
        self._left = pairs

    def spend(self, pairs: int) -> bool:
        """Return whether there is enough left, and take it."""
        self._left -= pairs
        return self._left >= 0


def network(sequences: Sequence[Sequence[str]], work: Work) -> list[Slot] | None:
    """Align sequences into slots, one after the other: ROVER's word transition network (Fiscus 1997).

    The first sequence is the skeleton. An item joins the slot whose items are most like it; two items that are nothing
    alike share a slot rather than take two. Returns None where the sequences are too long to align, or too many.
    """
    slots: list[Slot] = [{0: item} for item in sequences[0]]
    seen = sum(map(len, sequences[0]))
    for at, items in enumerate(sequences[1:], start=1):
        pairs, letters = len(slots) * len(items), sum(map(len, items))
        if pairs > MOST or not work.spend(at * (pairs + CALL) + seen * letters // LETTERS):
            return None
        seen += letters
        grown: list[Slot] = []
        for slot, item in _path(2 * GAP * _unlike(slots, at, items)):
            grown.append({} if slot is None else slots[slot])
            if item is not None:
                grown[-1][at] = items[item]
        slots = grown
    return slots


def _unlike(slots: Sequence[Slot], count: int, items: Sequence[str]) -> Costs:
    """Return each slot's mean distance to each of `items`: [slots, items], edits over length, 0..1.

    count: the sequences that are in the slots so far.
    """
    total, members = np.zeros((len(slots), len(items))), np.zeros((len(slots), 1))
    names, column = np.unique(np.array(items, object), return_inverse=True)  # a word that comes often is compared once
    for sequence in range(count):
        rows = [at for at, slot in enumerate(slots) if sequence in slot]
        if rows and items:
            own, row = np.unique(np.array([slots[at][sequence] for at in rows], object), return_inverse=True)
            total[rows] += process.cdist(own, names, scorer=Levenshtein.normalized_distance)[np.ix_(row, column)]
            members[rows] += 1
    costs: Costs = total / np.maximum(members, 1)
    return costs


def _path(costs: Costs) -> list[tuple[int | None, int | None]]:
    """Return the cheapest path through [n, m] costs as pairs (row, column), one of them None at a gap.

    Of paths that cost the same it is the one with fewer gaps, from the end. Dynamic programming, a row at a time.
    """
    n, m = costs.shape
    across = GAP * np.arange(m + 1)
    best = np.empty((n + 1, m + 1))
    best[0] = across
    for row in range(n):
        step = np.empty(m + 1)
        step[0] = GAP * (row + 1)
        step[1:] = np.minimum(best[row, :-1] + costs[row], best[row, 1:] + GAP)
        best[row + 1] = np.minimum.accumulate(step - across) + across
    pairs: list[tuple[int | None, int | None]] = []
    row, column = n, m
    while row or column:
        here = best[row, column] + 1e-9
        if row and column and best[row - 1, column - 1] + costs[row - 1, column - 1] <= here:
            row, column = row - 1, column - 1
            pairs.append((row, column))
        elif row and best[row - 1, column] + GAP <= here:
            row -= 1
            pairs.append((row, None))
        else:
            column -= 1
            pairs.append((None, column))
    return pairs[::-1]
