"""Which of several replicas gets a request."""

import random
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

CROWDED = 1.25
"""A replica with so many times the average load passes a picture that it knows on to another (bounded loads,
arXiv 1608.01350, section 1: a quarter above the average leaves nearly every request in its place)."""
_WORD = (1 << 64) - 1
_ODD = 0x9E3779B97F4A7C15  # 2^64 by the golden ratio: multiplying by it spreads neighbours over the whole word


class Loaded(Protocol):
    """load: requests of ours that it has now. mark: a number of its own, the same for every gateway, below 2^64."""

    @property
    def load(self) -> int: ...

    @property
    def mark(self) -> int: ...


Replica = TypeVar("Replica", bound=Loaded)


def _load(replica: Loaded) -> int:
    return replica.load


def choose(replicas: Sequence[Replica], picture: str | None, load: Callable[[Replica], int] = _load) -> Replica:
    """The one that every gateway prefers for this picture (hex digest), unless it is crowded; else the least busy.

    By highest random weight: a replica that comes or goes moves only its own share of the pictures. replicas: at least
    one. load: what counts as the load of one.
    """
    if len(replicas) == 1:
        return replicas[0]
    if picture is None:
        return min(replicas, key=lambda one: (load(one), random.random()))
    digest = int(picture[:16], 16)
    room = CROWDED * (1 + sum(map(load, replicas))) / len(replicas)
    free = [one for one in replicas if load(one) < room]  # never empty: the least busy one is below the average
    return max(free, key=lambda one: ((digest ^ one.mark) * _ODD & _WORD) >> 16)
