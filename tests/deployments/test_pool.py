"""One model's requests among its replicas: real connections, and a handle that knows where the replicas are."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from deployments.address import Address
from deployments.args import ModelArgs
from deployments.breaker import FAILURES
from deployments.pool import Errand, Pool
from deployments.replicas import Replicas
from serve.errors import BadRequest, ModelError, Overloaded
from serve.router.route import Status
from serve.rpc.server import Server

NAME = "toy-llava"
ROOM = 4


class Replica:
    """Says its name once it is let go."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.go = asyncio.Event()
        self.fault: ModelError | None = None
        self.asked = 0
        self.models = [NAME]
        self.server = Server({"answer": self.answer, "begin": self.begin}, self.standing)

    async def start(self) -> Address:
        return Address("127.0.0.1", await self.server.start("127.0.0.1"), self.server.token)

    async def answer(self, words: str) -> AsyncGenerator[str, None]:
        self.asked += 1
        await self.go.wait()
        if self.fault is not None:
            raise self.fault
        yield self.name

    async def begin(self, words: str) -> AsyncGenerator[str, None]:
        """A word, and the rest when it is let go."""
        yield "a word"
        await self.go.wait()

    async def standing(self) -> dict[str, Status]:
        return {name: Status(name, "ready", "ready", 0.0) for name in self.models}

    async def crash(self) -> None:
        """End as a process that is killed does."""
        self.server._stopped = True
        for session in list(self.server.sessions):
            assert session._transport is not None
            session._transport.abort()
        await self.server.stop()


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
        await asyncio.sleep(0.01)


async def ask(pool: Pool, errand: Errand, model: str = NAME, method: str = "answer") -> str:
    stream = pool.stream(model, errand, method, str(errand.words), pace_s=0)
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


@pytest.mark.parametrize(("planned", "code"), [(True, "model_starting"), (False, "engine_dead")])
async def test_a_process_that_goes_away_is_an_error_of_its_own_requests(planned: bool, code: str) -> None:
    async with pooled() as (pool, replicas, _):
        waiting = [asyncio.ensure_future(ask(pool, about(at))) for at in range(6)]
        await until(lambda: sum(one.asked for one in replicas) == 6)
        hit = replicas[0].asked
        await (replicas[0].server.stop() if planned else replicas[0].crash())
        replicas[1].go.set()
        seen = await asyncio.gather(*waiting, return_exceptions=True)
        dead = [one for one in seen if isinstance(one, ModelError)]
        assert len(dead) == hit and {one.code for one in dead} <= {code}
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


# --- a replica that hangs ---


class Ray:
    """Serve's handle, as Ray 2.60 gathers answers: all of them, or none where one is late."""

    def __init__(self, *answers: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        self.answers = answers
        self.address = self

    def broadcast(self, method: str) -> "Ray":
        return self

    async def results_async(self, *, timeout_s: float | None = None, return_exceptions: bool = False) -> list[Any]:
        await asyncio.sleep(0)  # until the replicas are known
        gathered = asyncio.gather(*(answer() for answer in self.answers), return_exceptions=return_exceptions)
        return list(await asyncio.wait_for(gathered, timeout_s))


async def hang() -> Address:
    await asyncio.sleep(3600)
    raise AssertionError


async def fail() -> Address:
    raise ConnectionError("dead")


def says(address: Address, after_s: float = 0.0) -> Callable[[], Coroutine[Any, Any, Address]]:
    async def say() -> Address:
        await asyncio.sleep(after_s)
        return address

    return say


@pytest.mark.parametrize("others", [[hang], [hang, hang, fail], [fail], []])
async def test_a_replica_that_hangs_hides_no_other(others: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.replicas.PATIENCE_S", 60.0)
    async with pooled(2) as (_, _, handle):
        found = Replicas(Ray(*others, says(handle.addresses[0]), says(handle.addresses[1], 0.3)))
        async with asyncio.timeout(20):
            assert await found.live()
            while len(await found.live()) < 2:
                await asyncio.sleep(0.01)
        found.close()


async def test_a_replica_that_takes_connections_and_says_nothing_hides_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("serve.rpc.connection.CONNECT_S", 60.0)

    class Silent(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            accepted.append(transport)

    accepted: list[Any] = []
    silent = await asyncio.get_running_loop().create_server(Silent, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    async with pooled(1) as (pool, replicas, handle):
        replicas[0].go.set()
        handle.addresses.insert(0, Address("127.0.0.1", port, b"s" * 32))
        async with asyncio.timeout(20):
            assert await ask(pool, about(1)) == "0"
        silent.close()
        for transport in accepted:
            transport.abort()


async def test_replicas_that_come_later_are_found_beside_one_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.replicas.LOOK_S", 0.01)
    monkeypatch.setattr("deployments.replicas.PATIENCE_S", 0.2)
    first, second = Replica("1"), Replica("2")
    handle = Ray(hang, says(await first.start()))
    found = Replicas(handle)
    async with asyncio.timeout(20):
        while len(await found.live()) < 1:
            await asyncio.sleep(0.01)
        handle.answers = (*handle.answers, says(await second.start()))
        while len(await found.live()) < 2:
            await asyncio.sleep(0.01)
    found.close()
    for one in (first, second):
        await one.server.stop()
    await asyncio.sleep(0.01)


# --- what is no death ---


async def ended(pool: Pool, replica: Replica, method: str, end: Callable[[Replica], Any]) -> ModelError:
    """What a request is told that is being answered when the replica ends."""
    asking = asyncio.ensure_future(ask(pool, about(1, "the same"), method=method))
    await until(lambda: asking.done() or replica.server.answering())
    await end(replica)
    with pytest.raises(ModelError) as refused:
        await asking
    return refused.value


async def leave(replica: Replica) -> None:
    await replica.server.drain(0.05)
    await replica.server.stop()


async def stop(replica: Replica) -> None:
    await replica.server.stop()


async def cut(replica: Replica) -> None:
    """As where nothing was heard of the gateway for too long."""
    for session in list(replica.server.sessions):
        session.heard -= 1000
        session.check_lease()
        session.check_lease()
    await replica.server.stop()


@pytest.mark.parametrize("end", [leave, stop, cut])
@pytest.mark.parametrize("method", ["answer", "begin"])
async def test_a_planned_end_is_no_death(
    end: Callable[[Replica], Any], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.replicas.LOOK_S", 0.01)
    async with pooled(1) as (pool, replicas, handle):
        for _ in range(4):
            assert (await ended(pool, replicas[-1], method, end)).code == "model_starting"
            replicas.append(Replica(str(len(replicas))))
            handle.addresses.append(await replicas[-1].start())
            async with asyncio.timeout(20):
                while not await pool._replicas.live():
                    await asyncio.sleep(0.01)
        replicas[-1].go.set()
        assert await ask(pool, about(1, "the same")) == replicas[-1].name


async def test_one_that_is_given_up_for_its_silence_is_no_death() -> None:
    async with pooled(1) as (pool, replicas, _):
        asking = asyncio.ensure_future(ask(pool, about(1)))
        await until(lambda: replicas[0].asked)
        (connection,) = await pool._replicas.live()
        connection.heard -= 1000
        pool._replicas._drop()
        with pytest.raises(ModelError) as refused:
            await asking
        assert refused.value.code == "model_starting" and not pool._quarantine


async def test_a_process_that_is_killed_is_a_death() -> None:
    async with pooled(1) as (pool, replicas, _):
        asking = asyncio.ensure_future(ask(pool, about(1)))
        await until(lambda: replicas[0].asked)
        await replicas[0].crash()
        with pytest.raises(ModelError) as refused:
            await asking
        assert refused.value.code == "engine_dead" and pool._quarantine


# --- an adapter that some replicas do not know ---


@pytest.mark.parametrize("knowing", [0, 1, 2])
async def test_an_adapter_goes_to_the_replicas_that_know_it(knowing: int) -> None:
    async with pooled(3) as (pool, replicas, _):
        for one in replicas:
            one.go.set()
        for one in replicas[:knowing]:
            one.models.append("lora")
        await pool._replicas.live()
        async with asyncio.timeout(20):
            for one in replicas:
                await one.server.tell()
            while sum("lora" in one.standing for one in await pool._replicas.live()) < knowing:
                await asyncio.sleep(0.01)
        status = await pool.status("lora")
        assert (status.model, status.state) == ("lora", "ready" if knowing else "starting") and status.step
        for at in range(20):
            if knowing:
                assert int(await ask(pool, about(at), "lora")) < knowing
            else:
                with pytest.raises(ModelError) as refused:
                    await ask(pool, about(at), "lora")
                assert refused.value.code == "model_starting"
        assert {await ask(pool, about(at)) for at in range(60)} == {"0", "1", "2"}


# --- how many prompts a request is ---


@pytest.mark.parametrize(("first", "second"), [(ROOM, 1), (1, ROOM), (ROOM - 1, 2)])
async def test_a_request_of_many_prompts_takes_the_room_of_many(first: int, second: int) -> None:
    async with pooled(1) as (pool, replicas, _):
        taken = asyncio.ensure_future(ask(pool, about(1)._replace(prompts=first)))
        await until(lambda: replicas[0].asked)
        with pytest.raises(Overloaded):
            await ask(pool, about(2)._replace(prompts=second))
        if first + 1 <= ROOM:
            fits = asyncio.ensure_future(ask(pool, about(3)._replace(prompts=ROOM - first)))
            await until(lambda: replicas[0].asked == 2)
            replicas[0].go.set()
            assert await fits == "0"
        replicas[0].go.set()
        assert await taken == "0"
        assert await ask(pool, about(2)._replace(prompts=second)) == "0"


@pytest.mark.parametrize("batch", [False, True])
async def test_one_larger_than_all_room_is_answered_by_a_replica_that_is_idle(batch: bool) -> None:
    async with pooled(1) as (pool, replicas, _):
        large = about(1, batch=batch)._replace(prompts=8 * ROOM)
        asking = asyncio.ensure_future(ask(pool, large))
        await until(lambda: replicas[0].asked)
        with pytest.raises(Overloaded):
            await ask(pool, about(2))
        with pytest.raises(Overloaded, match="32 prompts at once only while it answers nothing else"):
            await ask(pool, large)
        replicas[0].go.set()
        assert await asking == "0" and await ask(pool, about(2)) == "0"


async def test_many_prompts_count_as_load_when_a_replica_is_chosen() -> None:
    async with pooled(2, keeps_pictures=False) as (pool, replicas, _):
        large = asyncio.ensure_future(ask(pool, about(1)._replace(prompts=ROOM - 1)))
        await until(lambda: sum(one.asked for one in replicas) == 1)
        small = [asyncio.ensure_future(ask(pool, about(at))) for at in range(2, 4)]
        await until(lambda: sum(one.asked for one in replicas) == 3)
        assert sorted(one.asked for one in replicas) == [1, 2]
        for one in replicas:
            one.go.set()
        await asyncio.gather(large, *small)
