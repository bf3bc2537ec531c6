"""A pool spreads requests over replicas with real connections; discovery is scripted and imports no Ray."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from typing import Any

import numpy as np
import pytest
from crashed_server import crash
from filmed import film

from deployments.args import ModelArgs
from deployments.routing.discovery import ServeDiscovery
from deployments.routing.pool import FAILURES, EngineDied, Hindrance, Pool, RoutingKey
from deployments.routing.replica_route import Quarantine, ReplicaRoute
from deployments.routing.replicas import Address, Replicas
from serve.engines.base import Piece, Prompt, State
from serve.engines.fake import FakeEngine
from serve.errors import BadRequest, ModelError, Overloaded, Unavailable
from serve.media.budget import Budget
from serve.media.decoding import MediaDecoder
from serve.media.image import Image
from serve.media.video import Video, undecoded_video
from serve.models import MODELS
from serve.router import Router
from serve.router.route import Status
from serve.router.router import able_routes
from serve.tasks.caption import CaptionRequest
from serve.tasks.reply import Delta, Reply
from serve.tasks.request import Request
from serve.tasks.vqa import VqaRequest
from serve.transport.server import StreamServer
from serve.worker import Worker

NAME, SECOND, FILMS = "toy-llava", "toy-paligemma", "llava-next-video-7b"
ROOM = 4


class Replica:
    """A replica that answers with its name once `go` is set."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.go = asyncio.Event()
        self.fault: ModelError | None = None
        self.calls = 0
        self.models = [NAME]
        self.state: State = "ready"
        self.server = StreamServer({"answer": self.answer, "begin": self.begin}, self.statuses)

    async def start(self) -> Address:
        return Address("127.0.0.1", await self.server.start("127.0.0.1"), self.server.token)

    async def answer(self) -> AsyncGenerator[str, None]:
        self.calls += 1
        await self.go.wait()
        if self.fault is not None:
            raise self.fault
        yield self.name

    async def begin(self) -> AsyncGenerator[str, None]:
        """Yield one item at once, and end when `go` is set."""
        yield "a word"
        await self.go.wait()

    async def statuses(self) -> dict[str, Status]:
        return {name: Status(name, self.state, self.state, 0.0) for name in self.models}

    async def crash(self) -> None:
        """End like a killed process."""
        await crash(self.server)


class ScriptedDiscovery:
    """A discovery that finds the addresses of a list, and counts calls of `wake`."""

    def __init__(self, addresses: list[Address]) -> None:
        self.addresses = addresses
        self.woken = 0

    async def find(self, report: Callable[[Address], None]) -> None:
        for address in self.addresses:
            report(address)

    async def wake(self) -> None:
        self.woken += 1
        await asyncio.sleep(60)


@contextlib.asynccontextmanager
async def pooled(count: int = 2, **fields: Any) -> AsyncIterator[tuple[Pool, list[Replica], ScriptedDiscovery]]:
    replicas = [Replica(str(at)) for at in range(count)]
    discovery = ScriptedDiscovery([await replica.start() for replica in replicas])
    entry = ModelArgs(name=NAME, max_ongoing_requests=ROOM, **fields)
    pool = Pool(Replicas(discovery.find, discovery.wake), entry)
    try:
        yield pool, replicas, discovery
    finally:
        for replica in replicas:
            await replica.server.stop()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0.01)


async def ask(
    pool: Pool,
    key: RoutingKey,
    text: str = "what?",
    *,
    model: str = NAME,
    method: str = "answer",
    quarantine: Quarantine | None = None,
) -> str:
    route = ReplicaRoute(dataclasses.replace(MODELS[NAME], name=model), pool, quarantine or Quarantine())
    async with contextlib.aclosing(route.stream(lambda: (key, text), method, (), pace_s=0)) as items:
        return "".join([item async for item in items])


def about(image: int, *, batch: bool = False, prompts: int = 1) -> RoutingKey:
    return RoutingKey(f"{image * 0x9E3779B97F4A7C15 % 2**64:016x}", batch, prompts)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def total_calls(replicas: list[Replica]) -> int:
    return sum(replica.calls for replica in replicas)


def release(replicas: list[Replica]) -> None:
    for replica in replicas:
        replica.go.set()


async def test_image_stays_with_a_replica_and_images_spread_over_all() -> None:
    async with pooled() as (pool, replicas, _):
        release(replicas)
        first = [await ask(pool, about(at)) for at in range(40)]
        assert [await ask(pool, about(at), "and now?") for at in range(40)] == first
        assert set(first) == {"0", "1"}


async def test_full_pool_refuses_at_once_and_answers_accepted_requests() -> None:
    async with pooled() as (pool, replicas, _):
        taken = [asyncio.ensure_future(ask(pool, about(at))) for at in range(2 * ROOM)]
        await until(lambda: total_calls(replicas) == 2 * ROOM)
        assert pool.full()
        with pytest.raises(Overloaded) as refused:
            await ask(pool, about(99))
        assert (refused.value.status, refused.value.type, refused.value.code) == (429, "rate_limit_error", "overloaded")
        release(replicas)
        assert len(await asyncio.gather(*taken)) == 2 * ROOM
        assert not pool.full()
        assert await ask(pool, about(99))


async def test_batch_requests_leave_room_for_interactive_ones() -> None:
    async with pooled(1) as (pool, replicas, _):
        batch = [asyncio.ensure_future(ask(pool, about(at, batch=True))) for at in range(ROOM // 2)]
        await until(lambda: replicas[0].calls == ROOM // 2)
        with pytest.raises(Overloaded):
            await ask(pool, about(99, batch=True))
        interactive = asyncio.ensure_future(ask(pool, about(99)))
        replicas[0].go.set()
        assert await asyncio.gather(interactive, *batch) == ["0"] * (ROOM // 2 + 1)


def another_gateway(discovery: ScriptedDiscovery, replicas: slice = slice(None)) -> Pool:
    """Return the pool of another gateway, which knows these of the replicas."""
    known = ScriptedDiscovery(discovery.addresses[replicas])
    return Pool(Replicas(known.find, known.wake), ModelArgs(name=NAME, max_ongoing_requests=ROOM))


async def test_gateways_together_fill_a_replica_only_once() -> None:
    async with pooled() as (pool, replicas, discovery):
        pools = [pool, another_gateway(discovery), another_gateway(discovery)]
        asking = [asyncio.ensure_future(ask(pools[at % 3], about(at))) for at in range(6 * ROOM)]
        await until(lambda: sum(task.done() for task in asking) == 4 * ROOM)
        assert [replica.server.prompts for replica in replicas] == [ROOM, ROOM]
        assert {str(task.exception()) for task in asking if task.done()} == {f"{NAME} has too many requests waiting."}
        release(replicas)
        answers = await asyncio.gather(*asking, return_exceptions=True)
        assert sum(isinstance(answer, str) for answer in answers) == total_calls(replicas) == 2 * ROOM
        assert [replica.server.prompts for replica in replicas] == [0, 0]


async def test_request_that_a_full_replica_refuses_goes_to_another() -> None:
    async with pooled() as (pool, replicas, discovery):
        taken = [asyncio.ensure_future(ask(another_gateway(discovery, slice(1)), about(at))) for at in range(ROOM)]
        await until(lambda: replicas[0].server.prompts == ROOM)
        replicas[1].go.set()
        assert [await ask(pool, about(at)) for at in range(20)] == ["1"] * 20
        replicas[0].go.set()
        assert await asyncio.gather(*taken) == ["0"] * ROOM


async def test_request_that_slow_full_replicas_refuse_is_overloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.routing.pool.REFUSED_S", 0.0)  # each refusal takes longer than it is remembered
    async with pooled() as (pool, replicas, discovery):
        other = another_gateway(discovery)
        taken = [asyncio.ensure_future(ask(other, about(at))) for at in range(2 * ROOM)]
        await until(lambda: [replica.server.prompts for replica in replicas] == [ROOM, ROOM])
        async with asyncio.timeout(5):
            with pytest.raises(Overloaded, match="too many requests waiting"):
                await ask(pool, about(99))
        release(replicas)
        await asyncio.gather(*taken)


@pytest.mark.parametrize("large", [about(98, batch=True), about(98, prompts=ROOM)], ids=["batch", "many prompts"])
async def test_refusal_of_a_request_that_needs_more_room_holds_for_no_other(large: RoutingKey) -> None:
    async with pooled(1) as (pool, replicas, discovery):
        taken = [asyncio.ensure_future(ask(another_gateway(discovery), about(at))) for at in range(ROOM // 2)]
        await until(lambda: replicas[0].server.prompts == ROOM // 2)
        with pytest.raises(Overloaded):
            await ask(pool, large)
        assert not pool.full()
        taken.append(asyncio.ensure_future(ask(pool, about(99))))
        await until(lambda: replicas[0].server.prompts == ROOM // 2 + 1 or taken[-1].done())
        with pytest.raises(Overloaded):
            await ask(pool, large)
        release(replicas)
        assert await asyncio.gather(*taken) == ["0"] * (ROOM // 2 + 1)


async def test_requests_without_a_picture_go_where_other_gateways_have_none() -> None:
    async with pooled(2, keeps_pictures=False) as (pool, replicas, discovery):
        taken = [asyncio.ensure_future(ask(another_gateway(discovery, slice(1)), about(at))) for at in range(2)]
        await until(lambda: replicas[0].server.prompts == 2)
        await pool.wait_for_replica(1)
        await replicas[0].server.send_heartbeat()
        await until(lambda: any(replica.others == 2 for replica in pool._replicas.responsive()))
        replicas[1].go.set()
        assert [await ask(pool, about(at)) for at in range(20)] == ["1"] * 20
        replicas[0].go.set()
        await asyncio.gather(*taken)


async def test_replica_that_fails_every_request_gets_no_more() -> None:
    async with pooled(2, keeps_pictures=False) as (pool, replicas, _):
        release(replicas)
        replicas[0].fault = ModelError("The model's engine failed on this request.", code="engine_error")
        for at in range(100):
            with contextlib.suppress(ModelError):
                await ask(pool, about(at))
        calls = replicas[0].calls
        assert calls == FAILURES
        assert [await ask(pool, about(at)) for at in range(50)] == ["1"] * 50
        assert replicas[0].calls == calls


class Answering(Replica):
    """A replica that answers tasks by a simulated engine."""

    def __init__(self, name: str, model: str = NAME) -> None:
        super().__init__(name)
        self.models = [model]
        self.worker = Worker(MODELS[model], FakeEngine("yes"))
        self.worker.mark("ready", "ready")
        self.server.methods = {"answer": self.answer_task, "speak": self.speak}

    async def answer_task(self, task: str, request: Request, model: str) -> AsyncGenerator[Delta | Reply, None]:
        self.calls += 1
        if self.fault is not None:
            raise self.fault
        async for item in self.worker.answer(task, request):
            yield item

    async def speak(self, prompt: Prompt, model: str) -> AsyncGenerator[Piece, None]:
        if self.fault is not None:
            raise self.fault
        async for item in self.worker.speak(prompt):
            yield item


@contextlib.asynccontextmanager
async def fanned_out(*models: str) -> AsyncIterator[tuple[Router, list[Answering], Quarantine]]:
    """Serve these models, each by one replica; the quarantine is common to them."""
    async with pooled(0) as (_, replicas, _):
        replicas += [Answering(model, model) for model in models]
        quarantine, routes = Quarantine(), []
        for replica in replicas:
            discovery = ScriptedDiscovery([await replica.start()])
            pool = Pool(Replicas(discovery.find, discovery.wake), ModelArgs(name=replica.name))
            routes.append(ReplicaRoute(MODELS[replica.name], pool, quarantine))
        yield Router(routes), replicas, quarantine  # type: ignore[misc]


async def replies_of(router: Router, request: Request) -> list[Reply]:
    """Return the replies of a fan-out, which is read to its merged reply or its error."""
    replies = []
    with contextlib.suppress(Unavailable):
        async for event in router.run(router.plan("vqa", request)):
            if isinstance(event, Reply):
                replies.append(event)
    return replies


@pytest.mark.parametrize("count", [1, 2])
async def test_failures_between_answers_to_a_task_leave_the_replica_in_use(count: int) -> None:
    request = VqaRequest(image=Image(np.zeros((8, 8, 3), np.uint8)), question="what?")
    async with fanned_out(*(NAME, SECOND)[:count]) as (router, replicas, _):
        for fault in [ModelError("It failed.", code="internal_error"), None] * (FAILURES + 1):
            for replica in replicas:
                replica.fault = fault
            replies = await replies_of(router, request)
            assert [reply.status for reply in replies] == ["error" if fault else "ok"] * count
            assert not any(reply.error and reply.error.code == "model_resting" for reply in replies)


async def test_suspect_task_that_one_model_answers_is_cleared() -> None:
    request = VqaRequest(image=Image(np.zeros((8, 8, 3), np.uint8)), question="what?")
    async with fanned_out(NAME) as (router, replicas, quarantine):
        replicas[0].fault = ModelError("The model's engine died.", code="engine_dead")
        await replies_of(router, request)
        assert quarantine.suspects == 1
        replicas[0].fault = None
        router.routes[NAME]._pool._died.clear()  # type: ignore[attr-defined]
        assert [reply.status for reply in await replies_of(router, request)] == ["ok"]
        assert quarantine.suspects == 0


@pytest.mark.parametrize("method", ["answer", "speak"])
async def test_video_that_killed_an_engine_leaves_another_with_its_question_alone(method: str) -> None:
    async def ask_about(video: Video) -> None:
        async with MediaDecoder(Budget(2**30)).decode_video(video):
            if method == "answer":
                stream: AsyncGenerator[Any, None] = route.answer("caption", CaptionRequest(video=video))
            else:
                stream = route.speak(Prompt("what happens?", None, video=video.sample(2)))
            async with contextlib.aclosing(stream) as items:
                assert [item async for item in items]

    async with fanned_out(FILMS) as (router, replicas, quarantine):
        route = router.routes[FILMS]
        replicas[0].fault = ModelError("The model's engine died.", code="engine_dead")
        with pytest.raises(EngineDied):
            await ask_about(undecoded_video(film(4)))
        replicas[0].fault = None
        route._pool._died.clear()  # type: ignore[attr-defined]
        await ask_about(undecoded_video(film(5)))
        assert quarantine.suspects == 1
        await ask_about(undecoded_video(film(4)))
        assert quarantine.suspects == 0


async def test_stream_without_an_item_is_an_error_of_the_replica() -> None:
    class Silent(Replica):
        async def answer(self) -> AsyncGenerator[str, None]:
            self.calls += 1
            for item in ():
                yield item

    async with pooled(0) as (pool, replicas, discovery):
        replicas.append(Silent("silent"))
        discovery.addresses.append(await replicas[0].start())
        for _ in range(FAILURES):
            with pytest.raises(ModelError, match="ended without a word"):
                await ask(pool, about(1))
        with pytest.raises(ModelError, match="left alone"):
            await ask(pool, about(1))


async def test_request_that_kills_twice_is_refused_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.routing.replicas.REFRESH_S", 0.01)
    quarantine = Quarantine()
    async with pooled(0) as (pool, replicas, discovery):

        async def replace() -> Replica:
            replicas.append(Replica(str(len(replicas))))
            replicas[-1].go.set()
            discovery.addresses.append(await replicas[-1].start())
            return replicas[-1]

        for _ in range(2):
            replica = await replace()
            replica.fault = ModelError("The model's engine died.", code="engine_dead")
            async with asyncio.timeout(10):
                while not replica.calls:
                    await asyncio.sleep(0.001)
                    with contextlib.suppress(ModelError):
                        await ask(pool, about(1), "poison", quarantine=quarantine)
            with pytest.raises(
                ModelError, match="started again"
            ):  # it is dead: no other request is sent to it, or blamed
                await ask(pool, about(1), "water", quarantine=quarantine)
            assert replica.calls == 1
        with pytest.raises(BadRequest, match="died 2 times"):
            await ask(pool, about(1), "poison", quarantine=quarantine)
        last = await replace()
        async with asyncio.timeout(10):
            while not last.calls:
                await asyncio.sleep(0.001)
                with contextlib.suppress(ModelError):
                    assert await ask(pool, about(1), "water", quarantine=quarantine) == last.name


@pytest.mark.parametrize(("planned", "code"), [(True, "model_starting"), (False, "engine_dead")])
async def test_process_that_ends_fails_only_its_own_requests(planned: bool, code: str) -> None:
    async with pooled() as (pool, replicas, _):
        waiting = [asyncio.ensure_future(ask(pool, about(at))) for at in range(6)]
        await until(lambda: total_calls(replicas) == 6)
        hit = replicas[0].calls
        await (replicas[0].server.stop() if planned else replicas[0].crash())
        replicas[1].go.set()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        failed = [result for result in results if isinstance(result, ModelError)]
        assert len(failed) == hit and {error.code for error in failed} <= {code}
        assert results.count("1") == 6 - hit


async def test_status_counts_requests_that_wait_and_those_that_run() -> None:
    async with pooled(1) as (pool, replicas, _):
        asking = [asyncio.ensure_future(ask(pool, about(at))) for at in range(2)]
        await until(lambda: replicas[0].calls == 2)
        assert (await pool.status(NAME)).unanswered == 2
        replicas[0].go.set()
        await asyncio.gather(*asking)
        assert (await pool.status(NAME)).unanswered == 0


async def test_status_of_a_model_without_a_process_quotes_serve() -> None:
    async with pooled(0) as (pool, _, _):
        pool.hindrance = Hindrance(False, "no node has a GPU left")
        placing = await pool.status(NAME)
        assert (placing.state, placing.step) == ("starting", "starting its process: no node has a GPU left")
        pool.hindrance = Hindrance(True, "its file is missing")
        assert (await pool.status(NAME)).state == "failed"


async def test_added_model_joins_requests_without_names_once_loaded() -> None:
    async with pooled(1) as (pool, replicas, _), pooled(1) as (others, _, _):
        pool.joining = {NAME}
        routes = [ReplicaRoute(MODELS[NAME], pool, Quarantine()), ReplicaRoute(MODELS[SECOND], others, Quarantine())]
        router = Router(routes)
        for state, names in (("starting", [SECOND]), ("failed", [SECOND]), ("ready", [NAME, SECOND])):
            replicas[0].state = state
            await pool.wait_for_replica(1)
            await replicas[0].server.send_heartbeat()
            await until(lambda: pool._replicas.responsive()[0].statuses[NAME].state == state)  # noqa: B023
            assert [route.model.name for route in able_routes(router.routes, "vqa", None)] == names
        assert able_routes({NAME: routes[0]}, "vqa", None) == able_routes(router.routes, "vqa", [NAME]) == [routes[0]]


# --- a model that sleeps ---


async def test_sleeping_model_is_asleep_and_woken_once() -> None:
    async with pooled(0, autoscaling={"min_replicas": 0, "max_replicas": 1}) as (pool, _, discovery):
        assert (await pool.status(NAME)).state == "asleep"
        for _ in range(3):
            with pytest.raises(ModelError, match="was asleep") as refused:
                await ask(pool, about(1))
            assert refused.value.code == "model_starting"
        await until(lambda: discovery.woken == 1)
        assert (await pool.status(NAME)).state == "starting"


async def test_model_woken_by_another_gateway_answers_at_once() -> None:
    async with pooled(0, autoscaling={"min_replicas": 0, "max_replicas": 1}) as (pool, replicas, discovery):
        with pytest.raises(ModelError, match="was asleep"):
            await ask(pool, about(1))
        replicas.append(woken := Replica("woken"))
        discovery.addresses.append(await woken.start())
        woken.go.set()
        assert await asyncio.gather(*(ask(pool, about(at)) for at in range(3))) == ["woken"] * 3


async def test_sleeping_replica_of_a_group_gets_requests_to_keep() -> None:
    async with pooled(1) as (pool, replicas, _):
        replicas[0].state = "asleep"
        await replicas[0].server.send_heartbeat()
        asking = [asyncio.create_task(ask(pool, about(at))) for at in range(ROOM)]
        await until(lambda: total_calls(replicas) == ROOM)
        assert (await pool.status(NAME)).state == "asleep"
        with pytest.raises(Overloaded):  # those that wait count
            await ask(pool, about(9))
        replicas[0].go.set()
        assert await asyncio.gather(*asking) == ["0"] * ROOM


# --- a replica that hangs ---


class RayHandle:
    """A handle that gathers answers as Serve's in Ray 2.60: all of them, or none where one is late."""

    def __init__(self, *answers: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        self.answers = answers

    def broadcast(self, method: str) -> "RayHandle":
        return self

    async def results_async(self, *, timeout_s: float | None = None, return_exceptions: bool = False) -> list[Any]:
        await asyncio.sleep(0)  # until the replicas are known
        gathered = asyncio.gather(*(answer() for answer in self.answers), return_exceptions=return_exceptions)
        return list(await asyncio.wait_for(gathered, timeout_s))


def searching(handle: RayHandle, within_s: float = 60.0) -> Replicas:
    discovery = ServeDiscovery(handle, within_s=within_s)
    return Replicas(discovery.find, discovery.wake)


async def hang() -> Address:
    await asyncio.sleep(3600)
    raise AssertionError


async def fail() -> Address:
    raise ConnectionError("dead")


def answers(address: Address, after_s: float = 0.0) -> Callable[[], Coroutine[Any, Any, Address]]:
    async def answer() -> Address:
        await asyncio.sleep(after_s)
        return address

    return answer


@pytest.mark.slow
@pytest.mark.parametrize("others", [[hang], [hang, hang, fail], [fail], []])
async def test_replica_that_hangs_hides_no_other(others: list[Any]) -> None:
    async with pooled(2) as (_, _, discovery):
        handle = RayHandle(*others, answers(discovery.addresses[0]), answers(discovery.addresses[1], 0.3))
        replicas = searching(handle)
        async with asyncio.timeout(20):
            assert await replicas.available()
            while len(await replicas.available()) < 2:
                await asyncio.sleep(0.01)
        replicas.close()


async def test_replica_that_accepts_connections_and_sends_nothing_hides_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("serve.transport.connection.CONNECT_S", 60.0)

    class Silent(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            accepted.append(transport)

    accepted: list[Any] = []
    silent = await asyncio.get_running_loop().create_server(Silent, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    async with pooled(1) as (pool, replicas, discovery):
        replicas[0].go.set()
        discovery.addresses.insert(0, Address("127.0.0.1", port, b"s" * 32))
        async with asyncio.timeout(20):
            assert await ask(pool, about(1)) == "0"
        silent.close()
        for transport in accepted:
            transport.abort()


@pytest.mark.parametrize("closed", [False, True], ids=["open pool", "closed pool"])
async def test_requests_of_a_silent_replica_are_given_up(closed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("GIVE_UP_S", 0.3), ("REFRESH_S", 0.05), ("RETRY_S", 0.05)):
        monkeypatch.setattr(f"deployments.routing.replicas.{name}", seconds)
    async with pooled(1) as (pool, replicas, _):
        waiting = asyncio.ensure_future(ask(pool, about(1)))
        await until(lambda: replicas[0].calls)
        if closed:  # as for a model that a new config has not: its requests end before its replicas do
            pool.close()
        beating = replicas[0].server._beating
        assert beating is not None
        beating.cancel()
        async with asyncio.timeout(5):
            with pytest.raises(ModelError) as given_up:
                await waiting
        assert given_up.value.code == "model_starting"


@pytest.mark.slow
async def test_hanging_replica_does_not_hide_a_later_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.routing.replicas.REFRESH_S", 0.01)
    first, second = Replica("1"), Replica("2")
    handle = RayHandle(hang, answers(await first.start()))
    replicas = searching(handle, within_s=0.2)
    async with asyncio.timeout(20):
        while len(await replicas.available()) < 1:
            await asyncio.sleep(0.01)
        handle.answers = (*handle.answers, answers(await second.start()))
        while len(await replicas.available()) < 2:
            await asyncio.sleep(0.01)
    replicas.close()
    for replica in (first, second):
        await replica.server.stop()
    await asyncio.sleep(0.01)


async def test_handle_that_raises_finds_nothing_and_the_search_goes_on() -> None:
    class Unreachable(Exception):
        pass

    async def raise_unreachable() -> Address:
        raise Unreachable

    class Failing(RayHandle):
        async def results_async(self, **_: Any) -> list[Any]:
            raise Unreachable

    addresses: list[Address] = []
    await ServeDiscovery(Failing(), (Unreachable,)).find(addresses.append)
    await ServeDiscovery(RayHandle(raise_unreachable), (Unreachable,)).find(addresses.append)
    assert not addresses
    with pytest.raises(Unreachable):
        await ServeDiscovery(Failing()).find(addresses.append)


# --- deaths, and ends that are none ---


async def error_when(pool: Pool, replica: Replica, method: str, end: Callable[[Replica], Any]) -> ModelError:
    """Return the error of a request that is being answered when `end` ends its replica."""
    asking = asyncio.ensure_future(ask(pool, about(1), method=method))
    await until(lambda: asking.done() or replica.server.answering())
    await end(replica)
    with pytest.raises(ModelError) as refused:
        await asking
    return refused.value


async def drain(replica: Replica) -> None:
    await replica.server.drain(0.05)
    await replica.server.stop()


async def stop(replica: Replica) -> None:
    await replica.server.stop()


async def expire_lease(replica: Replica) -> None:
    """End the lease, as a replica does whose gateway was silent for too long."""
    for session in list(replica.server.sessions):
        session.last_heard -= 1000
        session.check_lease()
    await replica.server.stop()


@pytest.mark.slow
@pytest.mark.parametrize("end", [drain, stop, expire_lease])
@pytest.mark.parametrize("method", ["answer", "begin"])
async def test_planned_end_is_no_death(
    end: Callable[[Replica], Any], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.routing.replicas.REFRESH_S", 0.01)
    monkeypatch.setattr("deployments.routing.replicas.RETRY_S", 0.01)
    async with pooled(1) as (pool, replicas, discovery):
        for _ in range(4):
            error = await error_when(pool, replicas[-1], method, end)
            assert error.code == "model_starting" and not isinstance(error, EngineDied)
            replicas.append(Replica(str(len(replicas))))
            discovery.addresses.append(await replicas[-1].start())
            async with asyncio.timeout(20):
                while not await pool._replicas.available():
                    await asyncio.sleep(0.01)
        replicas[-1].go.set()
        assert await ask(pool, about(1)) == replicas[-1].name


async def test_replica_given_up_for_its_silence_is_no_death() -> None:
    quarantine = Quarantine()
    async with pooled(1) as (pool, replicas, _):
        asking = asyncio.ensure_future(ask(pool, about(1), quarantine=quarantine))
        await until(lambda: replicas[0].calls)
        (connection,) = await pool._replicas.available()
        connection.last_heard -= 1000
        pool._replicas._drop_lost()
        with pytest.raises(ModelError) as refused:
            await asking
        assert refused.value.code == "model_starting" and quarantine.suspects == 0


async def test_first_request_after_a_pause_of_the_gateway_is_answered() -> None:
    """A laptop that was closed, a machine that was moved: the timers of a minute are due at once, after the request."""
    async with pooled(1) as (pool, replicas, _):
        replicas[0].go.set()
        assert await ask(pool, about(1)) == replicas[0].name
        (connection,) = await pool._replicas.available()
        connection.last_heard -= 60
        connection._keep_alive_due -= 60
        assert pool._replicas.responsive() == [connection]
        assert await ask(pool, about(2)) == replicas[0].name


async def test_killed_process_is_a_death() -> None:
    quarantine = Quarantine()
    async with pooled(1) as (pool, replicas, _):
        asking = asyncio.ensure_future(ask(pool, about(1), quarantine=quarantine))
        await until(lambda: replicas[0].calls)
        await replicas[0].crash()
        with pytest.raises(EngineDied) as refused:
            await asking
        assert refused.value.code == "engine_dead" and quarantine.suspects == 1


# --- an adapter that some replicas do not know ---


@pytest.mark.parametrize("knowing", [0, 1, 2])
async def test_adapter_requests_go_to_replicas_with_the_adapter(knowing: int) -> None:
    async with pooled(3) as (pool, replicas, _):
        release(replicas)
        for replica in replicas[:knowing]:
            replica.models.append("lora")
        await pool._replicas.available()
        async with asyncio.timeout(20):
            for replica in replicas:
                await replica.server.send_heartbeat()
            while sum("lora" in replica.statuses for replica in await pool._replicas.available()) < knowing:
                await asyncio.sleep(0.01)
        status = await pool.status("lora")
        assert (status.model, status.state) == ("lora", "ready" if knowing else "starting") and status.step
        for at in range(20):
            if knowing:
                assert int(await ask(pool, about(at), model="lora")) < knowing
            else:
                with pytest.raises(ModelError) as refused:
                    await ask(pool, about(at), model="lora")
                assert refused.value.code == "model_starting"
        assert {await ask(pool, about(at)) for at in range(60)} == {"0", "1", "2"}


# --- requests of several prompts ---


@pytest.mark.parametrize(("first", "second"), [(ROOM, 1), (1, ROOM), (ROOM - 1, 2)])
async def test_request_of_several_prompts_takes_the_room_of_several(first: int, second: int) -> None:
    async with pooled(1) as (pool, replicas, _):
        taken = asyncio.ensure_future(ask(pool, about(1, prompts=first)))
        await until(lambda: replicas[0].calls)
        with pytest.raises(Overloaded):
            await ask(pool, about(2, prompts=second))
        if first + 1 <= ROOM:
            fits = asyncio.ensure_future(ask(pool, about(3, prompts=ROOM - first)))
            await until(lambda: replicas[0].calls == 2)
            replicas[0].go.set()
            assert await fits == "0"
        replicas[0].go.set()
        assert await taken == "0"
        assert await ask(pool, about(2, prompts=second)) == "0"


@pytest.mark.parametrize("batch", [False, True])
async def test_request_larger_than_the_room_is_answered_by_an_idle_replica(batch: bool) -> None:
    async with pooled(1) as (pool, replicas, _):
        large = about(1, batch=batch, prompts=8 * ROOM)
        asking = asyncio.ensure_future(ask(pool, large))
        await until(lambda: replicas[0].calls)
        with pytest.raises(Overloaded):
            await ask(pool, about(2))
        with pytest.raises(Overloaded, match="32 prompts at once only while it answers nothing else"):
            await ask(pool, large)
        replicas[0].go.set()
        assert await asking == "0" and await ask(pool, about(2)) == "0"


async def test_load_counts_prompts_when_a_replica_is_picked() -> None:
    async with pooled(2, keeps_pictures=False) as (pool, replicas, _):
        large = asyncio.ensure_future(ask(pool, about(1, prompts=ROOM - 1)))
        await until(lambda: total_calls(replicas) == 1)
        small = [asyncio.ensure_future(ask(pool, about(at))) for at in range(2, 4)]
        await until(lambda: total_calls(replicas) == 3)
        assert sorted(replica.calls for replica in replicas) == [1, 2]
        release(replicas)
        await asyncio.gather(large, *small)


async def test_family_that_cannot_count_its_prompts_fails_its_own_reply_alone() -> None:
    def count(request: Any) -> int:
        raise LookupError("a bug in the family")

    skill = dataclasses.replace(MODELS[NAME].skills["vqa"], prompts=count)
    broken = dataclasses.replace(MODELS[NAME], name="broken", skills={"vqa": skill})
    well = Worker(MODELS["toy-paligemma"], FakeEngine("red"))
    well.mark("ready", "ready")
    async with pooled() as (pool, _, _):
        router = Router([ReplicaRoute(broken, pool, Quarantine()), well])
        request = VqaRequest(image=Image(np.zeros((8, 8, 3), np.uint8)), question="what?")
        events = [event async for event in router.run(router.plan("vqa", request))]
    replies = {event.model: event for event in events if isinstance(event, Reply)}
    assert {name: reply.status for name, reply in replies.items()} == {"broken": "error", "toy-paligemma": "ok"}
    assert replies["broken"].error is not None and replies["broken"].error.code == "internal_error"


async def test_pool_that_was_closed_serves_the_app_from_before_and_searches_no_more() -> None:
    async with pooled(1) as (pool, (replica,), discovery):
        assert await pool.loaded(NAME)
        pool.close()
        replica.go.set()
        assert await ask(pool, about(1)) == "0" and (await pool.status(NAME)).state == "ready"
        await asyncio.sleep(0.01)
        assert not [task for task in asyncio.all_tasks() if "_keep_refreshing" in repr(task)]
    async with asyncio.timeout(5):  # also where it was never asked before
        unused = Pool(Replicas(discovery.find, discovery.wake), ModelArgs(name=NAME))
        unused.close()
        assert (await unused.status(NAME)).state == "starting"
