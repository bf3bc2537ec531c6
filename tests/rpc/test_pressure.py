"""Connections under pressure: large calls, peers that do not read, that are silent, or that stop on purpose."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest

from serve.errors import BadRequest, ModelError
from serve.rpc.connection import Connection
from serve.rpc.frames import PIECE_BYTES, encode, pieces
from serve.rpc.messages import Call
from serve.rpc.peer import UNSENT_BYTES
from serve.rpc.server import Server, Session

LARGE = 40 * 2**20


class Served:
    """Methods that note what they were asked, and in what order."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.given = 0

    async def name(self, name: str, *more: Any) -> AsyncGenerator[str, None]:
        self.asked.append(name)
        yield name

    async def pour(self, count: int, size: int) -> AsyncGenerator[bytes, None]:
        for _ in range(count):
            self.given += size
            yield bytes(size)

    async def wait(self) -> AsyncGenerator[int, None]:
        yield 1
        await asyncio.Event().wait()

    async def give(self, thing: Any) -> AsyncGenerator[Any, None]:
        yield 1
        await asyncio.sleep(0.02)
        yield thing


class Broken:
    """Breaks where it is unpickled."""

    def __init__(self, error: type[Exception]) -> None:
        self.error = error

    def __reduce__(self) -> tuple[Any, ...]:
        return _fail, (self.error,)


def _fail(error: type[Exception]) -> None:
    raise error("It cannot be read.")


class Breaking:
    """Breaks when it is pickled again."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Broken, (ValueError,)


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[tuple[Served, Server, int]]:
    async def standing() -> str:
        return "well"

    served = Served()
    methods = {"name": served.name, "pour": served.pour, "wait": served.wait, "give": served.give}
    server = Server(methods, standing)
    port = await server.start("127.0.0.1")
    try:
        yield served, server, port
    finally:
        await server.stop()
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def connected() -> AsyncIterator[tuple[Served, Server, Connection]]:
    async with serving() as (served, server, port):
        connection = await Connection.open("127.0.0.1", port, server.token)
        try:
            yield served, server, connection
        finally:
            connection.abort()


@contextlib.asynccontextmanager
async def deaf() -> AsyncIterator[Connection]:
    """A connection to one that reads nothing."""

    class Deaf(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            transport.pause_reading()
            kept.append(transport)

    kept: list[Any] = []
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Deaf, "127.0.0.1", 0)
    _, connection = await loop.create_connection(lambda: Connection(b"t" * 32), *server.sockets[0].getsockname()[:2])
    try:
        yield connection
    finally:
        connection.abort()
        server.close()
        for transport in kept:
            transport.abort()


async def until(condition: Callable[[], object], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def session_of(server: Server) -> Session:
    (session,) = server.sessions
    return session


async def heard(stream: AsyncGenerator[Any, None]) -> list[Any]:
    return [item async for item in stream]


async def test_small_calls_and_cancels_pass_large_ones() -> None:
    async with connected() as (served, server, connection):
        waiting = connection.stream("wait")
        await anext(waiting)
        large = [asyncio.ensure_future(heard(connection.stream("name", str(at), bytes(LARGE)))) for at in range(3)]
        await until(lambda: session_of(server)._reader._large)  # some of one has come
        assert await heard(connection.stream("name", "small")) == ["small"]
        await waiting.aclose()
        await until(lambda: len(session_of(server).jobs) == 0)
        assert served.asked == ["small"]
        assert await asyncio.gather(*large) == [["0"], ["1"], ["2"]]


async def test_a_large_call_that_nobody_waits_for_any_more_is_not_sent_on_and_leaves_nothing() -> None:
    async with connected() as (served, server, connection):
        large = [asyncio.ensure_future(heard(connection.stream("name", str(at), bytes(LARGE)))) for at in range(3)]
        await until(lambda: session_of(server)._reader._large)
        for job in large:
            job.cancel()
        await asyncio.gather(*large, return_exceptions=True)
        assert not connection._parcels
        await until(lambda: not session_of(server)._reader._large)
        assert await heard(connection.stream("name", "small")) == ["small"] and served.asked == ["small"]


async def test_what_a_peer_does_not_read_is_not_written() -> None:
    async with deaf() as connection:
        asking = [asyncio.ensure_future(heard(connection.stream("name", bytes(LARGE)))) for _ in range(5)]
        await until(lambda: connection.behind)
        await asyncio.sleep(0.1)
        assert connection._transport is not None
        assert connection._transport.get_write_buffer_size() <= UNSENT_BYTES + 2 * PIECE_BYTES
        small = [asyncio.ensure_future(heard(connection.stream("name", bytes(5000)))) for _ in range(300)]
        await asyncio.sleep(0.05)
        assert connection._transport.get_write_buffer_size() <= UNSENT_BYTES + 2 * PIECE_BYTES
        for job in asking + small:
            job.cancel()
        await asyncio.gather(*asking, *small, return_exceptions=True)
        assert not connection._parcels and connection.load == 0


@pytest.mark.parametrize("size", [100, 10_000, 3_000_000])
async def test_who_speaks_waits_for_a_caller_that_does_not_read(size: int) -> None:
    async with connected() as (served, server, connection):
        assert connection._transport is not None
        session = session_of(server)
        stream = connection.stream("pour", 200_000_000 // size, size)
        assert len(await anext(stream)) == size
        connection._transport.pause_reading()  # type: ignore[attr-defined]
        await until(lambda: session.behind)
        before = served.given
        await asyncio.sleep(0.1)
        assert served.given <= before + size < 100_000_000
        connection._transport.resume_reading()  # type: ignore[attr-defined]
        await until(lambda: served.given > before + 20 * size)
        await stream.aclose()
        await until(lambda: not session.jobs)


async def test_one_that_never_says_the_token_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.rpc.server.TOKEN_S", 0.1)
    async with serving() as (_, server, port):
        known = await Connection.open("127.0.0.1", port, server.token)
        for start in (b"", b"\0", server.token[:31]):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(start)
            assert await asyncio.wait_for(reader.read(), 5) == b""
            writer.close()
        assert not known.lost.is_set()
        known.abort()


async def test_a_caller_whose_large_call_is_still_coming_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.rpc.server.NEWS_S", 0.05)
    monkeypatch.setattr("serve.rpc.server.LEASE_S", 0.4)
    async with serving() as (served, server, port):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        frame = encode(Call(1, "name", ("slow", bytes(100))), 1)
        writer.write(server.token)
        for byte in b"".join(bytes(part) for piece in pieces(frame, 1) for part in piece):
            writer.write(bytes([byte]))  # not one message is whole for longer than the lease
            await asyncio.sleep(0.005)
        await until(lambda: served.asked == ["slow"])
        await until(lambda: not server.sessions)  # and now it is silent
        writer.close()


async def test_a_replica_whose_large_item_is_still_coming_is_heard() -> None:
    async with connected() as (_, server, connection):
        connection.heard = before = 0.0
        transport = session_of(server)._transport
        assert transport is not None
        transport.write(encode(bytes(1000))[0])  # only the head
        await until(lambda: connection.heard > before)


async def test_while_our_own_loop_stands_still_nobody_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.rpc.connection.RENEW_S", 0.05)
    async with connected() as (_, _, connection):
        await asyncio.sleep(0.1)
        connection.heard = before = time.monotonic()
        time.sleep(0.5)
        connection._renew(asyncio.get_running_loop().time() - 0.5)  # its timer fell due while the loop stood still
        assert connection.heard >= before + 0.49


async def test_a_planned_end_is_announced_and_a_sudden_one_is_not() -> None:
    async with connected() as (_, server, connection):
        await server.stop()
        await asyncio.wait_for(connection.lost.wait(), 5)
        assert connection.leaving
    async with connected() as (_, server, connection):
        transport = session_of(server)._transport
        assert transport is not None
        transport.abort()  # as by a process that is killed
        await asyncio.wait_for(connection.lost.wait(), 5)
        assert not connection.leaving
    async with connected() as (_, _, connection):
        connection.abort()
        assert connection.lost.is_set() and connection.leaving


async def test_a_caller_that_is_cut_off_for_its_silence_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.rpc.server.NEWS_S", 0.05)
    monkeypatch.setattr("serve.rpc.server.LEASE_S", 0.2)
    async with connected() as (_, server, connection):
        await until(lambda: not server.sessions)
        await asyncio.wait_for(connection.lost.wait(), 5)
        assert connection.leaving


async def test_a_loss_after_our_own_loop_stood_still_is_no_death(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.rpc.connection.LEASE_S", 0.2)
    async with connected() as (_, server, connection):
        await asyncio.sleep(0.05)
        transport = session_of(server)._transport
        assert transport is not None
        time.sleep(0.3)
        transport.abort()  # without a word, as where what was said to us did not fit
        await asyncio.wait_for(connection.lost.wait(), 5)
        assert connection.leaving


@pytest.mark.parametrize(
    ("error", "raised"), [(BadRequest, BadRequest), (ValueError, ModelError), (AttributeError, ModelError)]
)
async def test_a_call_that_cannot_be_read_there_fails_alone(error: type[Exception], raised: type[Exception]) -> None:
    async with connected() as (_, _, connection):
        others = [connection.stream("name", str(at)) for at in range(3)]
        broken = [connection.stream("name", Broken(error), bytes(size)) for size in (1, 2 * PIECE_BYTES)]
        found = await asyncio.gather(*map(heard, [*others, *broken]), return_exceptions=True)
        assert found[:3] == [["0"], ["1"], ["2"]] and [type(one) for one in found[3:]] == [raised, raised]
        assert not connection.lost.is_set() and connection.load == 0


async def test_a_call_that_cannot_be_written_fails_alone() -> None:
    async with connected() as (_, _, connection):
        found = await asyncio.gather(
            heard(connection.stream("name", lambda: 1)), heard(connection.stream("name", "b")), return_exceptions=True
        )
        assert isinstance(found[0], Exception) and found[1] == ["b"]
        assert not connection.lost.is_set() and connection.load == 0


async def test_an_item_that_cannot_be_read_here_fails_its_stream_alone() -> None:
    async with connected() as (_, server, connection):
        waiting = connection.stream("wait")
        assert await anext(waiting) == 1
        found = await asyncio.gather(
            *(heard(connection.stream("give", thing)) for thing in ("a", Breaking(), "b")), return_exceptions=True
        )
        assert found[0] == [1, "a"] and found[2] == [1, "b"] and isinstance(found[1], ModelError)
        assert not connection.lost.is_set()
        await waiting.aclose()


async def test_arrays_of_many_calls_in_one_turn_are_all_read() -> None:
    async with connected() as (_, _, connection):
        arrays = [np.full(3, at % 256, np.uint8) for at in range(1300)]
        found = await asyncio.gather(*(heard(connection.stream("name", "a", array)) for array in arrays))
        assert found == [["a"]] * 1300
        assert await heard(connection.stream("name", "a", arrays)) == ["a"]
