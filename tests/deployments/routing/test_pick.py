"""Rendezvous hashing with bounded loads picks the replica that gets a request."""

import hashlib
import random
from collections import Counter
from dataclasses import dataclass

import pytest

from deployments.routing.pool import CROWDED, pick_replica

COUNT = 2000


@dataclass
class Replica:
    name: str
    server_id: int
    load: int = 0


def replicas(count: int, seed: int = 0) -> list[Replica]:
    draw = random.Random(seed)
    return [Replica(str(at), draw.getrandbits(64)) for at in range(count)]


def picked(replicas: list[Replica], image: str | None) -> Replica:
    return pick_replica(replicas, image, lambda replica: replica.load)


def images(count: int = COUNT) -> list[str]:
    return [hashlib.blake2b(str(at).encode(), digest_size=20).hexdigest() for at in range(count)]


def test_questions_about_an_image_go_to_the_same_replica() -> None:
    four = replicas(4)
    for image in images(50):
        assert len({picked(four, image).name for _ in range(5)}) == 1


@pytest.mark.slow
def test_images_are_spread_evenly() -> None:
    for count in (2, 3, 4, 8, 32):
        shares = Counter(picked(replicas(count, seed=count), image).name for image in images(200 * count))
        assert len(shares) == count and 100 < min(shares.values()) <= max(shares.values()) < 300


def test_removed_replica_moves_only_its_own_images() -> None:
    before = replicas(5)
    after = before[:2] + before[3:]
    moved = {image for image in images() if picked(before, image).name != picked(after, image).name}
    assert moved == {image for image in images() if picked(before, image).name == before[2].name}


def test_popular_image_is_shared_among_replicas() -> None:
    four = replicas(4)
    image = images(1)[0]
    for _ in range(400):
        picked(four, image).load += 1
    assert max(replica.load for replica in four) <= CROWDED * 100 + 1


def test_request_without_an_image_goes_to_any_of_the_least_loaded() -> None:
    four = replicas(4)
    four[0].load = four[1].load = 1
    assert {picked(four, None).name for _ in range(100)} == {"2", "3"}
