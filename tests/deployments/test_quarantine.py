"""Requests that were being answered when an engine died."""

import asyncio

import pytest

from deployments.quarantine import KEPT_S, MOST, Quarantine
from serve.errors import BadRequest


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_a_request_that_was_there_at_two_deaths_is_refused_for_a_while() -> None:
    clock = Clock()
    quarantine = Quarantine(clock)
    quarantine.blame("poison", "first")
    quarantine.blame("poison", "second")
    with pytest.raises(BadRequest, match="died 2 times") as refused:
        async with quarantine.watched("toy", "poison"):
            raise AssertionError("it was tried")
    assert refused.value.code == "quarantined"
    clock.now += KEPT_S + 1
    async with quarantine.watched("toy", "poison"):
        pass


async def test_asked_many_times_at_once_it_was_there_at_one_death_only() -> None:
    quarantine = Quarantine()
    for _ in range(24):
        quarantine.blame("popular", "first")
    async with quarantine.watched("toy", "popular"):
        pass
    assert not quarantine


async def test_one_that_is_answered_is_cleared() -> None:
    quarantine = Quarantine()
    quarantine.blame("innocent", "first")
    assert quarantine
    async with quarantine.watched("toy", "innocent"):
        pass
    assert not quarantine


async def test_one_that_fails_again_stays_suspected() -> None:
    quarantine = Quarantine()
    quarantine.blame("poison", "first")
    with pytest.raises(ConnectionError):
        async with quarantine.watched("toy", "poison"):
            raise ConnectionError
    assert quarantine


async def test_suspects_run_one_by_one_and_the_others_beside_them() -> None:
    quarantine = Quarantine()
    running: set[str] = set()
    together: list[set[str]] = []

    async def run(name: str) -> None:
        async with quarantine.watched("toy", name):
            running.add(name)
            together.append(set(running))
            await asyncio.sleep(0)
            running.discard(name)

    for suspect in ("a", "b", "c"):
        quarantine.blame(suspect, "first")
    await asyncio.gather(*map(run, ("a", "b", "c", "well")))
    assert all(len(some - {"well"}) <= 1 for some in together)
    assert {"a", "well"} in together


async def test_it_remembers_so_many_and_no_more() -> None:
    quarantine = Quarantine()
    for death in range(2):
        quarantine.blame("long ago", death)
    for at in range(MOST):
        quarantine.blame(at, "last")
    async with quarantine.watched("toy", "long ago"):
        pass
