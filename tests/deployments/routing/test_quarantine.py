"""Requests that were running when an engine died run alone the next time, and are refused after two deaths."""

import asyncio

import pytest

from deployments.routing.pool import EngineDied
from deployments.routing.replica_route import KEPT_S, MAX_SUSPECTS, Quarantine
from serve.errors import BadRequest


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_request_running_at_two_deaths_is_refused_until_expiry() -> None:
    clock = Clock()
    quarantine = Quarantine(clock)
    quarantine.blame("poison", 1)
    quarantine.blame("poison", 2)
    with pytest.raises(BadRequest, match="died 2 times") as refused:
        async with quarantine.watch("toy", "poison"):
            raise AssertionError("it was tried")
    assert refused.value.code == "quarantined"
    clock.now += KEPT_S + 1
    async with quarantine.watch("toy", "poison"):
        pass


async def test_equal_requests_running_at_a_death_are_blamed_once() -> None:
    quarantine = Quarantine()
    for _ in range(24):
        quarantine.blame("popular", 1)
    async with quarantine.watch("toy", "popular"):
        pass
    assert quarantine.suspects == 0


async def test_request_that_sees_an_engine_die_is_blamed_for_that_death() -> None:
    quarantine = Quarantine()
    for server_id in (1, 1, 2):
        with pytest.raises(EngineDied):
            async with quarantine.watch("toy", "poison"):
                raise EngineDied("The engine died.", server_id)
    with pytest.raises(BadRequest):
        async with quarantine.watch("toy", "poison"):
            pass
    async with quarantine.watch("toy", "water"):
        pass


async def test_suspects_waiting_their_turn_are_refused_once_an_equal_request_has_killed_twice() -> None:
    quarantine, killed = Quarantine(), 0

    async def ask() -> str:
        nonlocal killed
        try:
            async with quarantine.watch("toy", "poison"):
                await asyncio.sleep(0)
                killed += 1
                raise EngineDied("The engine died.", killed)
        except (EngineDied, BadRequest) as error:
            return error.code

    assert await ask() == "engine_dead"
    assert await asyncio.gather(*(ask() for _ in range(5))) == ["engine_dead", *["quarantined"] * 4]
    assert killed == 2


async def test_suspect_that_is_answered_is_cleared() -> None:
    quarantine = Quarantine()
    quarantine.blame("innocent", 1)
    assert quarantine.suspects == 1
    async with quarantine.watch("toy", "innocent"):
        pass
    assert quarantine.suspects == 0


async def test_suspect_that_fails_otherwise_stays_suspected() -> None:
    quarantine = Quarantine()
    quarantine.blame("poison", 1)
    with pytest.raises(ConnectionError):
        async with quarantine.watch("toy", "poison"):
            raise ConnectionError
    assert quarantine.suspects == 1


async def test_suspects_run_in_sequence_beside_other_requests() -> None:
    quarantine = Quarantine()
    running: set[str] = set()
    together: list[set[str]] = []

    async def run(name: str) -> None:
        async with quarantine.watch("toy", name):
            running.add(name)
            together.append(set(running))
            await asyncio.sleep(0)
            running.discard(name)

    for suspect in ("a", "b", "c"):
        quarantine.blame(suspect, 1)
    await asyncio.gather(*map(run, ("a", "b", "c", "well")))
    assert all(len(names - {"well"}) <= 1 for names in together)
    assert {"a", "well"} in together


async def test_oldest_suspect_is_forgotten_beyond_the_limit() -> None:
    quarantine = Quarantine()
    for server_id in range(2):
        quarantine.blame("long ago", server_id)
    for at in range(MAX_SUSPECTS):
        quarantine.blame(at, 9)
    async with quarantine.watch("toy", "long ago"):
        pass
