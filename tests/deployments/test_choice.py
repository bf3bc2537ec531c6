"""Which of several replicas gets a request."""

import hashlib
import random
from collections import Counter
from dataclasses import dataclass

from deployments.choice import choose

COUNT = 2000


@dataclass
class Replica:
    name: str
    mark: int
    load: int = 0


def replicas(count: int, seed: int = 0) -> list[Replica]:
    draw = random.Random(seed)
    return [Replica(str(at), draw.getrandbits(64)) for at in range(count)]


def pictures(count: int = COUNT) -> list[str]:
    return [hashlib.blake2b(str(at).encode(), digest_size=20).hexdigest() for at in range(count)]


def test_questions_about_a_picture_go_to_the_same_replica() -> None:
    four = replicas(4)
    for picture in pictures(50):
        assert len({choose(four, picture).name for _ in range(5)}) == 1


def test_pictures_are_spread_evenly() -> None:
    for count in (2, 3, 4, 8, 32):
        shares = Counter(choose(replicas(count, seed=count), picture).name for picture in pictures(200 * count))
        assert len(shares) == count and 100 < min(shares.values()) <= max(shares.values()) < 300


def test_a_replica_that_leaves_moves_only_its_own_pictures() -> None:
    before = replicas(5)
    after = before[:2] + before[3:]
    moved = {p for p in pictures() if choose(before, p).name != choose(after, p).name}
    assert moved == {p for p in pictures() if choose(before, p).name == before[2].name}


def test_a_picture_that_everybody_asks_about_is_shared_among_them() -> None:
    four = replicas(4)
    picture = pictures(1)[0]
    for _ in range(400):
        choose(four, picture).load += 1
    assert max(one.load for one in four) <= 1.25 * 100 + 1


def test_without_a_picture_the_least_busy_one_is_chosen_and_no_favourite_among_equals() -> None:
    four = replicas(4)
    four[0].load = four[1].load = 1
    assert {choose(four, None).name for _ in range(100)} == {"2", "3"}
