"""Picks the replica that a request goes to."""

import random
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

CROWDED = 1.25
"""Load, relative to the average, from which on a replica's images go to another one (bounded loads, arXiv 1608.01350,
section 1: with a quarter above the average nearly every request stays in its place)."""
_WORD = (1 << 64) - 1
_ODD = 0x9E3779B97F4A7C15  # 2^64 by the golden ratio: multiplying by it spreads neighbours over the whole word


class HasLoad(Protocol):
    """A replica. load: number of our requests in it. server_id: the same number for every gateway, below 2^64."""

    @property
    def load(self) -> int: ...

    @property
    def server_id(self) -> int: ...


ReplicaT = TypeVar("ReplicaT", bound=HasLoad)


def _load(replica: HasLoad) -> int:
    return replica.load


def pick_replica(replicas: Sequence[ReplicaT], image: str | None, load: Callable[[ReplicaT], int] = _load) -> ReplicaT:
    """Return the replica that every gateway prefers for this image, unless it is crowded; without one the least loaded.

    Rendezvous hashing (highest random weight): a replica that comes or goes moves only its own share of the images.
    replicas: at least one. image: the hex digest of its file.
    """
    if len(replicas) == 1:
        return replicas[0]
    if image is None:
        return min(replicas, key=lambda replica: (load(replica), random.random()))
    digest = int(image[:16], 16)
    room = CROWDED * (1 + sum(map(load, replicas))) / len(replicas)
    free = [replica for replica in replicas if load(replica) < room]  # never empty: the least loaded is below average
    return max(free, key=lambda replica: ((digest ^ replica.server_id) * _ODD & _WORD) >> 16)
