"""Connections under pressure: large calls, and peers that do not read, are silent, or stop on purpose."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest

from serve.errors import BadRequest, ModelError
from serve.transport.connection import Connection
from serve.transport.messages import Call
from serve.transport.peer import MAX_UNSENT_BYTES, PIECE_BYTES, encode_frame, pieces
from serve.transport.server import Session, StreamServer

LARGE = 40 * 2**20


class Methods:
    """Methods that record how they were called, in order."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.given = 0

    async def name(self, name: str, *more: Any) -> AsyncGenerator[str, None]:
        self.calls.append(name)
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
    """An object that cannot be unpickled."""

    def __init__(self, error: type[Exception]) -> None:
        self.error = error

    def __reduce__(self) -> tuple[Any, ...]:
        return _fail, (self.error,)


def _fail(error: type[Exception]) -> None:
    raise error("It cannot be read.")


class Breaking:
    """An object that cannot be pickled again."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Broken, (ValueError,)


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[tuple[Methods, StreamServer, int]]:
    async def statuses() -> str:
        return "well"

    served = Methods()
    methods = {"name": served.name, "pour": served.pour, "wait": served.wait, "give": served.give}
    server = StreamServer(methods, statuses)
    port = await server.start("127.0.0.1")
    try:
        yield served, server, port
    finally:
        await server.stop()
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def connected() -> AsyncIterator[tuple[Methods, StreamServer, Connection]]:
    async with serving() as (served, server, port):
        connection = await Connection.open("127.0.0.1", port, server.token)
        try:
            yield served, server, connection
        finally:
            connection.abort()


@contextlib.asynccontextmanager
async def not_reading() -> AsyncIterator[Connection]:
    """Yield a connection to a server that reads nothing."""

    class NotReading(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            transport.pause_reading()
            kept.append(transport)

    kept: list[Any] = []
    loop = asyncio.get_running_loop()
    server = await loop.create_server(NotReading, "127.0.0.1", 0)
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


def session_of(server: StreamServer) -> Session:
    (session,) = server.sessions
    return session


async def items_of(stream: AsyncGenerator[Any, None]) -> list[Any]:
    return [item async for item in stream]


@pytest.mark.slow
async def test_small_calls_and_cancels_overtake_large_ones() -> None:
    async with connected() as (served, server, connection):
        waiting = connection.stream("wait")
        await anext(waiting)
        large = [asyncio.ensure_future(items_of(connection.stream("name", str(at), bytes(LARGE)))) for at in range(3)]
        await until(lambda: session_of(server)._reader._large)  # some of one has come
        assert await items_of(connection.stream("name", "small")) == ["small"]
        await waiting.aclose()
        await until(lambda: len(session_of(server).jobs) == 0)
        assert served.calls == ["small"]
        assert await asyncio.gather(*large) == [["0"], ["1"], ["2"]]


async def test_cancelled_large_call_is_not_sent_on_and_leaves_nothing() -> None:
    async with connected() as (served, server, connection):
        large = [asyncio.ensure_future(items_of(connection.stream("name", str(at), bytes(LARGE)))) for at in range(3)]
        await until(lambda: session_of(server)._reader._large)
        for job in large:
            job.cancel()
        await asyncio.gather(*large, return_exceptions=True)
        assert not connection._large_frames
        await until(lambda: not session_of(server)._reader._large)
        assert await items_of(connection.stream("name", "small")) == ["small"] and served.calls == ["small"]


@pytest.mark.slow
async def test_peer_that_does_not_read_is_not_written_to() -> None:
    async with not_reading() as connection:
        asking = [asyncio.ensure_future(items_of(connection.stream("name", bytes(LARGE)))) for _ in range(5)]
        await until(lambda: connection.congested)
        await asyncio.sleep(0.1)
        assert connection._transport is not None
        assert connection._transport.get_write_buffer_size() <= MAX_UNSENT_BYTES + 2 * PIECE_BYTES
        small = [asyncio.ensure_future(items_of(connection.stream("name", bytes(5000)))) for _ in range(300)]
        await asyncio.sleep(0.05)
        assert connection._transport.get_write_buffer_size() <= MAX_UNSENT_BYTES + 2 * PIECE_BYTES
        for job in asking + small:
            job.cancel()
        await asyncio.gather(*asking, *small, return_exceptions=True)
        assert not connection._large_frames and connection.load == 0


@pytest.mark.slow
@pytest.mark.parametrize("size", [100, 10_000, 3_000_000])
async def test_stream_waits_for_a_caller_that_does_not_read(size: int) -> None:
    async with connected() as (served, server, connection):
        assert connection._transport is not None
        session = session_of(server)
        stream = connection.stream("pour", 200_000_000 // size, size)
        assert len(await anext(stream)) == size
        connection._transport.pause_reading()  # type: ignore[attr-defined]
        await until(lambda: session.congested)
        before = served.given
        await asyncio.sleep(0.1)
        assert served.given <= before + size < 100_000_000
        connection._transport.resume_reading()  # type: ignore[attr-defined]
        await until(lambda: served.given > before + 20 * size)
        await stream.aclose()
        await until(lambda: not session.jobs)


@pytest.mark.slow
async def test_caller_that_never_sends_the_token_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.transport.server.TOKEN_S", 0.1)
    async with serving() as (_, server, port):
        known = await Connection.open("127.0.0.1", port, server.token)
        for start in (b"", b"\0", server.token[:31]):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(start)
            assert await asyncio.wait_for(reader.read(), 5) == b""
            writer.close()
        assert not known.lost.is_set()
        known.abort()


@pytest.mark.slow
async def test_caller_whose_large_call_is_still_arriving_keeps_its_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.transport.server.HEARTBEAT_S", 0.05)
    monkeypatch.setattr("serve.transport.server.LEASE_S", 0.4)
    async with serving() as (served, server, port):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        frame = encode_frame(Call(1, "name", ("slow", bytes(100))), 1)
        writer.write(server.token)
        for byte in b"".join(bytes(part) for piece in pieces(frame, 1) for part in piece):
            writer.write(bytes([byte]))  # no message is complete for longer than the lease
            await asyncio.sleep(0.005)
        await until(lambda: served.calls == ["slow"])
        await until(lambda: not server.sessions)  # and now it is silent
        writer.close()


async def test_part_of_a_large_item_counts_as_a_sign_of_life() -> None:
    async with connected() as (_, server, connection):
        connection.last_heard = before = 0.0
        transport = session_of(server)._transport
        assert transport is not None
        transport.write(encode_frame(bytes(1000))[0])  # only the head
        await until(lambda: connection.last_heard > before)


@pytest.mark.slow
async def test_stalled_loop_does_not_count_as_the_peers_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.transport.connection.KEEP_ALIVE_S", 0.05)
    async with connected() as (_, _, connection):
        await asyncio.sleep(0.1)
        connection.last_heard = before = time.monotonic()
        time.sleep(0.5)
        connection._send_keep_alive(
            asyncio.get_running_loop().time() - 0.5
        )  # its timer fell due while the loop was blocked
        assert connection.last_heard >= before + 0.49


async def test_pauses_of_the_servers_process_are_no_silence_however_many_follow_each_other() -> None:
    """A machine that sleeps, wakes for a moment and sleeps again: the caller had no time to say anything."""
    async with connected() as (_, server, connection):
        session = session_of(server)
        for _ in range(3):
            session.last_heard -= 60
            session.check_lease(stood_s=60)
        await asyncio.sleep(0)
        assert list(server.sessions) == [session] and not connection.lost.is_set()
        session.last_heard -= 60
        session.check_lease(stood_s=1)
        await asyncio.wait_for(connection.lost.wait(), 5)


async def test_time_in_which_our_process_was_stopped_is_no_silence() -> None:
    async with connected() as (_, _, connection):
        now = time.monotonic()
        connection.last_heard, connection._keep_alive_due = now - 60.5, now - 60
        assert 0.4 < connection.silent_s < 5
        connection._keep_alive_due = now + 0.5
        assert 60 < connection.silent_s < 65


async def test_planned_end_is_announced_and_a_crash_is_not() -> None:
    async with connected() as (_, server, connection):
        await server.stop()
        await asyncio.wait_for(connection.lost.wait(), 5)
        assert connection.draining
    async with connected() as (_, server, connection):
        transport = session_of(server)._transport
        assert transport is not None
        transport.abort()  # as by a process that is killed
        await asyncio.wait_for(connection.lost.wait(), 5)
        assert not connection.draining
    async with connected() as (_, _, connection):
        connection.abort()
        assert connection.lost.is_set() and connection.draining


@pytest.mark.slow
async def test_silent_caller_gets_goodbye_before_the_disconnect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.transport.server.HEARTBEAT_S", 0.05)
    monkeypatch.setattr("serve.transport.server.LEASE_S", 0.2)
    async with connected() as (_, server, connection):
        await until(lambda: not server.sessions)
        await asyncio.wait_for(connection.lost.wait(), 5)
        assert connection.draining


@pytest.mark.slow
async def test_loss_after_a_stalled_loop_counts_as_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.transport.connection.LEASE_S", 0.2)
    async with connected() as (_, server, connection):
        await asyncio.sleep(0.05)
        transport = session_of(server)._transport
        assert transport is not None
        time.sleep(0.3)
        transport.abort()  # without a goodbye, as when it did not fit into the buffers
        await asyncio.wait_for(connection.lost.wait(), 5)
        assert connection.draining


@pytest.mark.parametrize(
    ("error", "raised"), [(BadRequest, BadRequest), (ValueError, ModelError), (AttributeError, ModelError)]
)
async def test_call_that_the_server_cannot_unpickle_fails_alone(
    error: type[Exception], raised: type[Exception]
) -> None:
    async with connected() as (_, _, connection):
        others = [connection.stream("name", str(at)) for at in range(3)]
        broken = [connection.stream("name", Broken(error), bytes(size)) for size in (1, 2 * PIECE_BYTES)]
        results = await asyncio.gather(*map(items_of, [*others, *broken]), return_exceptions=True)
        assert results[:3] == [["0"], ["1"], ["2"]] and [type(error) for error in results[3:]] == [raised, raised]
        assert not connection.lost.is_set() and connection.load == 0


async def test_call_that_cannot_be_pickled_fails_alone() -> None:
    async with connected() as (_, _, connection):
        results = await asyncio.gather(
            items_of(connection.stream("name", lambda: 1)),
            items_of(connection.stream("name", "b")),
            return_exceptions=True,
        )
        assert isinstance(results[0], Exception) and results[1] == ["b"]
        assert not connection.lost.is_set() and connection.load == 0


async def test_item_that_cannot_be_unpickled_fails_its_stream_alone() -> None:
    async with connected() as (_, server, connection):
        waiting = connection.stream("wait")
        assert await anext(waiting) == 1
        results = await asyncio.gather(
            *(items_of(connection.stream("give", thing)) for thing in ("a", Breaking(), "b")), return_exceptions=True
        )
        assert results[0] == [1, "a"] and results[2] == [1, "b"] and isinstance(results[1], ModelError)
        assert not connection.lost.is_set()
        await waiting.aclose()


async def test_arrays_of_many_calls_in_a_turn_are_read() -> None:
    async with connected() as (_, _, connection):
        arrays = [np.full(3, at % 256, np.uint8) for at in range(1300)]
        results = await asyncio.gather(*(items_of(connection.stream("name", "a", array)) for array in arrays))
        assert results == [["a"]] * 1300
        assert await items_of(connection.stream("name", "a", arrays)) == ["a"]
