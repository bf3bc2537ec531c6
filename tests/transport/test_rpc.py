"""Streams over a real connection: their items, order and errors, and the loss of either end."""

import asyncio
import pickle
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import numpy as np
import pytest

from serve.errors import BadRequest, ModelError
from serve.tracing import REQUEST_ID
from serve.transport.connection import Connection
from serve.transport.messages import Call
from serve.transport.peer import BadFrame, Reader, encode_frame
from serve.transport.server import StreamServer

exploded: list[int] = []


def explode() -> None:
    exploded.append(1)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return explode, ()


class Methods:
    """Methods to call, which record how their streams ended."""

    def __init__(self) -> None:
        self.running = 0
        self.ended = asyncio.Event()

    async def count(self, most: int, wait_s: float = 0.0) -> AsyncGenerator[int, None]:
        self.running += 1
        try:
            for at in range(most):
                await asyncio.sleep(wait_s)
                yield at
        finally:
            self.running -= 1
            self.ended.set()

    async def echo(self, thing: Any) -> AsyncGenerator[Any, None]:
        yield thing

    async def request_id(self) -> AsyncGenerator[str, None]:
        yield REQUEST_ID.get()

    async def refuse(self) -> AsyncGenerator[int, None]:
        yield 1
        raise BadRequest("No.", param="image", code="invalid_image")

    async def stumble(self) -> AsyncGenerator[int, None]:
        raise RuntimeError("a bug")
        yield 1


@asynccontextmanager
async def connected(counting: Methods, **options: Any) -> AsyncIterator[tuple[StreamServer, Connection]]:
    async def statuses() -> str:
        return "well"

    methods = {name: getattr(counting, name) for name in ("count", "echo", "refuse", "stumble", "request_id")}
    server = StreamServer(methods, statuses, **options)
    port = await server.start("127.0.0.1")
    connection = await Connection.open("127.0.0.1", port, server.token)
    try:
        yield server, connection
    finally:
        connection.close()
        await server.stop()
        await asyncio.sleep(0.01)


async def test_streams_share_a_connection_and_each_keeps_its_order() -> None:
    async with connected(Methods()) as (_, connection):

        async def received(most: int) -> list[int]:
            return [item async for item in connection.stream("count", most, 0.001)]

        assert await asyncio.gather(*map(received, range(20))) == [list(range(most)) for most in range(20)]
        assert connection.load == 0 and connection.statuses == "well"


async def test_arrays_arrive_equal_and_writable() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (700, 900, 3), dtype=np.uint8)
    async with connected(Methods()) as (_, connection):
        (back,) = [item async for item in connection.stream("echo", {"a": pixels, "b": [pixels[::2], "words"]})]
        assert np.array_equal(back["a"], pixels) and np.array_equal(back["b"][0], pixels[::2])
        assert back["a"].flags.writeable


async def test_error_arrives_unchanged_after_earlier_items() -> None:
    async with connected(Methods()) as (_, connection):
        received = []
        with pytest.raises(BadRequest) as caught:
            async for item in connection.stream("refuse"):
                received.append(item)
        assert received == [1] and (caught.value.param, caught.value.code) == ("image", "invalid_image")


async def test_unexpected_error_arrives_without_its_message(caplog: pytest.LogCaptureFixture) -> None:
    async with connected(Methods()) as (_, connection):
        with pytest.raises(ModelError) as caught:
            _ = [item async for item in connection.stream("stumble")]
        assert caught.value.code == "internal_error" and "a bug" not in caught.value.message
    assert "a bug" in caplog.text


async def test_closed_stream_is_cancelled_on_the_server_and_no_other_is() -> None:
    counting = Methods()
    async with connected(counting) as (server, connection):
        other = asyncio.create_task(_all(connection, 30))
        async with aclosing(connection.stream("count", 10_000, 0.005)) as items:
            assert await anext(items) == 0
        await asyncio.wait_for(counting.ended.wait(), 5)
        assert await other == list(range(30))
        assert counting.running == server.answering() == 0


async def test_streams_of_a_caller_that_disconnects_are_cancelled() -> None:
    counting, abandoned = Methods(), list[int]()
    async with connected(counting, on_abandoned=abandoned.append) as (server, connection):
        items = connection.stream("count", 10_000, 0.005)
        await anext(items)
        connection.abort()
        await asyncio.wait_for(counting.ended.wait(), 5)
        assert not server.sessions and abandoned == [1]
        with pytest.raises(ConnectionError):
            _ = [item async for item in items]
        with pytest.raises(ConnectionError):
            await anext(connection.stream("count", 1))


@pytest.mark.slow
async def test_silent_caller_loses_its_streams_and_a_live_caller_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("serve.transport.server.HEARTBEAT_S", 0.05)
    monkeypatch.setattr("serve.transport.server.LEASE_S", 0.5)
    monkeypatch.setattr("serve.transport.connection.KEEP_ALIVE_S", 0.05)
    counting = Methods()
    async with connected(counting) as (server, connection):
        items = connection.stream("count", 10_000, 60)
        reading = asyncio.ensure_future(anext(items))
        assert server._listening is not None
        reader, writer = await asyncio.open_connection("127.0.0.1", server._listening.sockets[0].getsockname()[1])
        writer.write(server.token + b"".join(encode_frame([Call(0, "count", (10_000, 60))])))  # and nothing after that
        async with asyncio.timeout(10):
            while counting.running < 2:
                await asyncio.sleep(0.01)
            await counting.ended.wait()
        assert counting.running == 1 and not connection.lost.is_set()
        writer.close()
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


async def test_streams_of_a_server_that_stops_raise_connection_error() -> None:
    abandoned: list[int] = []
    async with connected(Methods(), on_abandoned=abandoned.append) as (server, connection):
        items = connection.stream("count", 10_000, 0.005)
        await anext(items)
        await server.stop()
        with pytest.raises(ConnectionError):
            _ = [item async for item in items]
        assert connection.lost.is_set()
    assert not abandoned  # the caller did not disconnect


async def test_bytes_are_not_unpickled_without_the_token() -> None:
    pickle.loads(pickle.dumps(Bomb()))
    assert exploded == [1]  # the bytes are such a bomb
    exploded.clear()
    async with connected(Methods()) as (server, _):
        assert server._listening is not None
        port = server._listening.sockets[0].getsockname()[1]
        for token in (b"\0" * 32, server.token[:31] + b"\0", pickle.dumps(Bomb())):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(token + b"".join(encode_frame([Bomb()])))
            assert await asyncio.wait_for(reader.read(), 5) == b""
            writer.close()
            await writer.wait_closed()
        with pytest.raises(ConnectionError):
            await Connection.open("127.0.0.1", port, b"\1" * 32)
    assert not exploded


async def test_bad_frame_disconnects_the_caller(caplog: pytest.LogCaptureFixture) -> None:
    async with connected(Methods()) as (server, connection):
        assert server._listening is not None
        reader, writer = await asyncio.open_connection(*server._listening.sockets[0].getsockname()[:2])
        writer.write(server.token + b"\xff" * 64)
        await asyncio.wait_for(_until_cut(reader), 5)
        writer.close()
        assert [item async for item in connection.stream("count", 2)] == [0, 1]


async def test_items_close_together_are_joined_and_the_first_never_waits() -> None:
    frames: list[list[int]] = []

    def join(items: list[int]) -> list[int]:
        frames.append(items)
        return items

    async with connected(Methods(), join=join) as (_, connection):
        began = asyncio.get_running_loop().time()
        items = connection.stream("count", 40, 0.002, pace_s=0.03)
        assert await anext(items) == 0
        assert asyncio.get_running_loop().time() - began < 0.03
        assert [item async for item in items] == list(range(1, 40))
    assert frames[0] == [0] and len(frames) < 20


async def test_draining_server_announces_the_end_and_finishes_streams() -> None:
    async with connected(Methods()) as (server, connection):
        received = asyncio.create_task(_all(connection, 20))
        await asyncio.sleep(0.02)
        await server.drain(5)
        assert connection.draining and server.answering() == 0
        assert await received == list(range(20))


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_frames_are_decoded_from_bytes_in_any_pieces(size: int) -> None:
    things = [["a", 1], [np.arange(500)], [], [b"x" * 3000]]
    data = b"".join(bytes(part) for thing in things for part in encode_frame(thing))
    reader, received = Reader(), []
    for at in range(0, len(data), size):
        received += reader.feed(data[at : at + size])
    assert [str(item) for item in received] == [str(thing) for thing in things]


def test_frame_of_too_many_parts_is_refused() -> None:
    with pytest.raises(BadFrame):
        Reader().feed(b"\xff\xff\xff\xff" + b"\0" * 100)


async def _all(connection: Connection, most: int) -> list[int]:
    return [item async for item in connection.stream("count", most, 0.005)]


async def _until_cut(reader: asyncio.StreamReader) -> None:
    while await reader.read(1000):
        pass


async def test_streams_keep_the_request_id_of_their_caller(caplog: pytest.LogCaptureFixture) -> None:
    async with connected(Methods()) as (_, connection):

        async def ask(name: str) -> list[str]:
            REQUEST_ID.set(name)
            return [item async for item in connection.stream("request_id")]

        names = [f"id-{i}" for i in range(10)]
        assert await asyncio.gather(*map(ask, names)) == [[name] for name in names]

        async def stumble() -> None:
            REQUEST_ID.set("the-one")
            async for _ in connection.stream("stumble"):
                pass

        with pytest.raises(ModelError):
            await asyncio.gather(stumble())
    assert "request the-one: stumble failed" in caplog.text
