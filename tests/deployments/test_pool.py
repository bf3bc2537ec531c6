"""One model's requests among its replicas: real connections, and a handle that knows where the replicas are."""

import asyncio
import contextlib
import warnings
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest

from deployments.address import Address
from deployments.args import ModelArgs
from deployments.breaker import FAILURES
from serve.errors import BadRequest, ModelError, Overloaded
from serve.rpc.server import Server
from serve.worker import Status

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own
    from deployments.pool import Errand, Pool

pytestmark = pytest.mark.engine  # Ray is imported, which takes seconds
NAME = "toy-llava"
ROOM = 4


class Replica:
    """Says its name once it is let go."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.go = asyncio.Event()
        self.fault: ModelError | None = None
        self.asked = 0
        self.server = Server({"answer": self.answer}, self.standing)

    async def start(self) -> Address:
        return Address("127.0.0.1", await self.server.start("127.0.0.1"), self.server.token)

    async def answer(self, words: str) -> AsyncGenerator[str, None]:
        self.asked += 1
        await self.go.wait()
        if self.fault is not None:
            raise self.fault
        yield self.name

    async def standing(self) -> dict[str, Status]:
        return {NAME: Status(NAME, "ready", "ready", 0.0)}


class Handle:
    """Serve's, as far as a pool asks it."""

    def __init__(self, addresses: list[Address]) -> None:
        self.addresses = addresses
        self.knocks = 0
        self.address = self

    def broadcast(self, method: str) -> "Handle":
        return self

    async def results_async(self, **_: Any) -> list[Address]:
        return self.addresses

    async def remote(self) -> Address:
        self.knocks += 1
        await asyncio.sleep(60)
        raise TimeoutError


@contextlib.asynccontextmanager
async def pooled(count: int = 2, **fields: Any) -> AsyncIterator[tuple[Pool, list[Replica], Handle]]:
    replicas = [Replica(str(at)) for at in range(count)]
    handle = Handle([await one.start() for one in replicas])
    pool = Pool(handle, ModelArgs(name=NAME, max_ongoing_requests=ROOM, **fields))
    try:
        yield pool, replicas, handle
    finally:
        for one in replicas:
            await one.server.stop()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()


async def ask(pool: Pool, errand: Errand) -> str:
    stream = pool.stream(NAME, errand, "answer", str(errand.words), pace_s=0)
    async with contextlib.aclosing(stream) as said:
        return "".join([word async for word in said])


def about(picture: int, words: str = "what?", *, batch: bool = False) -> Errand:
    return Errand(f"{picture * 0x9E3779B97F4A7C15 % 2**64:016x}", batch, words)


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def test_a_pictures_questions_go_to_one_replica_and_pictures_to_all() -> None:
    async with pooled() as (pool, replicas, _):
        for one in replicas:
            one.go.set()
        first = [await ask(pool, about(at)) for at in range(40)]
        assert [await ask(pool, about(at, "and now?")) for at in range(40)] == first
        assert set(first) == {"0", "1"}


async def test_where_there_is_no_room_it_is_refused_at_once_and_what_was_taken_is_answered() -> None:
    async with pooled() as (pool, replicas, _):
        taken = [asyncio.ensure_future(ask(pool, about(at))) for at in range(2 * ROOM)]
        await until(lambda: sum(one.asked for one in replicas) == 2 * ROOM)
        with pytest.raises(Overloaded) as refused:
            await ask(pool, about(99))
        assert (refused.value.status, refused.value.type, refused.value.code) == (429, "rate_limit_error", "overloaded")
        for one in replicas:
            one.go.set()
        assert len(await asyncio.gather(*taken)) == 2 * ROOM
        assert await ask(pool, about(99))


async def test_what_may_wait_leaves_room_for_those_who_cannot() -> None:
    async with pooled(1) as (pool, replicas, _):
        patient = [asyncio.ensure_future(ask(pool, about(at, batch=True))) for at in range(ROOM // 2)]
        await until(lambda: replicas[0].asked == ROOM // 2)
        with pytest.raises(Overloaded):
            await ask(pool, about(99, batch=True))
        waiting = asyncio.ensure_future(ask(pool, about(99)))
        replicas[0].go.set()
        assert await asyncio.gather(waiting, *patient) == ["0"] * (ROOM // 2 + 1)


async def test_a_replica_that_fails_everything_is_left_alone() -> None:
    async with pooled(2, keeps_pictures=False) as (pool, replicas, _):
        for one in replicas:
            one.go.set()
        replicas[0].fault = ModelError("The model's engine failed on this request.", code="engine_error")
        for at in range(100):
            with contextlib.suppress(ModelError):
                await ask(pool, about(at))
        asked = replicas[0].asked
        assert asked == FAILURES
        assert [await ask(pool, about(at)) for at in range(50)] == ["1"] * 50
        assert replicas[0].asked == asked


async def test_a_request_that_kills_twice_is_refused_and_the_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.replicas.LOOK_S", 0.01)
    async with pooled(0) as (pool, replicas, handle):

        async def replaced() -> Replica:
            replicas.append(Replica(str(len(replicas))))
            replicas[-1].go.set()
            handle.addresses.append(await replicas[-1].start())
            return replicas[-1]

        for _ in range(2):
            replica = await replaced()
            replica.fault = ModelError("The model's engine died.", code="engine_dead")
            async with asyncio.timeout(10):
                while not replica.asked:
                    await asyncio.sleep(0.001)
                    with contextlib.suppress(ModelError):
                        await ask(pool, about(1, "poison"))
            with pytest.raises(ModelError, match="started again"):  # it is dead: nobody else asks it, or is blamed
                await ask(pool, about(1, "water"))
            assert replica.asked == 1
        with pytest.raises(BadRequest, match="died 2 times"):
            await ask(pool, about(1, "poison"))
        last = await replaced()
        async with asyncio.timeout(10):
            while not last.asked:
                await asyncio.sleep(0.001)
                with contextlib.suppress(ModelError):
                    assert await ask(pool, about(1, "water")) == last.name


async def test_a_process_that_goes_away_is_an_error_of_its_own_requests() -> None:
    async with pooled() as (pool, replicas, _):
        waiting = [asyncio.ensure_future(ask(pool, about(at))) for at in range(6)]
        await until(lambda: sum(one.asked for one in replicas) == 6)
        hit = replicas[0].asked
        await replicas[0].server.stop()
        replicas[1].go.set()
        seen = await asyncio.gather(*waiting, return_exceptions=True)
        dead = [one for one in seen if isinstance(one, ModelError)]
        assert len(dead) == hit and {one.code for one in dead} <= {"engine_dead"}
        assert seen.count("1") == 6 - hit


async def test_a_sleeping_model_says_so_and_is_knocked_for_once() -> None:
    async with pooled(0, autoscaling={"min_replicas": 0, "max_replicas": 1}) as (pool, _, handle):
        assert (await pool.status(NAME)).state == "asleep"
        for _ in range(3):
            with pytest.raises(ModelError, match="was asleep") as refused:
                await ask(pool, about(1))
            assert refused.value.code == "model_starting"
        await until(lambda: handle.knocks == 1)
        assert (await pool.status(NAME)).state == "starting"


async def test_a_model_that_another_gateway_woke_is_not_said_to_sleep() -> None:
    async with pooled(0, autoscaling={"min_replicas": 0, "max_replicas": 1}) as (pool, replicas, handle):
        with pytest.raises(ModelError, match="was asleep"):
            await ask(pool, about(1))
        replicas.append(woken := Replica("woken"))
        handle.addresses.append(await woken.start())
        woken.go.set()
        assert await asyncio.gather(*(ask(pool, about(at)) for at in range(3))) == ["woken"] * 3
