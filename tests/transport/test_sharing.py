"""Images in shared memory between two processes, either of which may be killed at any time."""

import asyncio
import contextlib
import gc
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve.errors import ServeError
from serve.media.image import Image
from serve.media.shared_pixels import SharedPixels
from serve.media.video import Video
from serve.transport.connection import Connection
from serve.transport.server import StreamServer

WIDTH, HEIGHT = 2000, 1000
SUM = WIDTH * HEIGHT * 3 * 9


class Looking:
    """Methods of a replica that reads images, in this process or a child."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def look(self, seen: Image | Video) -> AsyncGenerator[tuple[bool, int], None]:
        pixels = seen.pixels if isinstance(seen, Image) else seen.frames
        yield seen.shared is not None, int(pixels.sum())

    async def hold(self, image: Image) -> AsyncGenerator[int, None]:
        yield int(image.pixels.sum())
        await asyncio.Event().wait()

    async def look_late(self, image: Image) -> AsyncGenerator[int, None]:
        yield 0
        await self.go.wait()
        yield int(image.pixels.sum())


async def served(looking: Looking) -> tuple[StreamServer, int]:
    async def statuses() -> str:
        return "well"

    methods = {"look": looking.look, "hold": looking.hold, "look_late": looking.look_late}
    server = StreamServer(methods, statuses)
    return server, await server.start("127.0.0.1")


async def main() -> None:
    """Run a replica until standard input ends."""
    server, port = await served(Looking())
    print(port, server.token.hex(), flush=True)
    await asyncio.to_thread(sys.stdin.read)


CALLER = """
import asyncio, sys
from serve.transport.connection import Connection
from tests.transport.test_sharing import shared_picture

async def main(port, token):
    connection = await Connection.open("127.0.0.1", port, bytes.fromhex(token))
    print(connection.shares_memory, flush=True)
    async for item in connection.stream("hold", shared_picture()):
        print(item, flush=True)

asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
"""


def shared_picture() -> Image:
    pixels = SharedPixels.create(WIDTH, HEIGHT)
    pixels.pixels[:] = 9
    image = Image(None, "d")
    image.share(pixels)
    return image


def descriptors(pid: int | str = "self") -> int:
    gc.collect()
    return len(os.listdir(f"/proc/{pid}/fd"))


def shmem(pid: int | str = "self") -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssShmem"))


@contextlib.asynccontextmanager
async def process(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    child = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdin=-1, stdout=-1, env=environment)
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.communicate()


async def line(child: asyncio.subprocess.Process) -> str:
    assert child.stdout is not None
    return (await asyncio.wait_for(child.stdout.readline(), 60)).decode().strip()


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def replica() -> AsyncIterator[tuple[asyncio.subprocess.Process, Connection]]:
    async with process("-m", "tests.transport.test_sharing") as child:
        port, token = (await line(child)).split()
        connection = await Connection.open("127.0.0.1", int(port), bytes.fromhex(token))
        try:
            yield child, connection
        finally:
            connection.abort()


@pytest.mark.slow
async def test_pixels_are_read_in_another_process_without_a_copy_or_a_leak() -> None:
    async with replica() as (child, connection):
        assert connection.shares_memory
        before, theirs = descriptors(), descriptors(child.pid)
        for _ in range(5):
            image = shared_picture()
            assert [item async for item in connection.stream("look", image)] == [(True, SUM)]
            assert image.shared is not None
            film = Video.sharing(image.shared, (0.0, 1.0), 2.0)
            assert [item async for item in connection.stream("look", film)] == [(True, SUM)]
            del image, film
        assert descriptors() == before
        await until(lambda: descriptors(child.pid) == theirs and shmem(child.pid) < 3_000_000)


@pytest.mark.slow
async def test_killed_replica_leaves_no_memory_in_the_gateway() -> None:
    before, memory = descriptors(), shmem()
    async with replica() as (child, connection):
        stream = connection.stream("hold", shared_picture())
        assert await anext(stream) == SUM and shmem(child.pid) > 5_000_000
        child.kill()
        with pytest.raises(ConnectionError):
            await anext(stream)
        del stream
    await until(lambda: descriptors() <= before + 2 and shmem() < memory + 1_000_000)  # asyncio keeps two for children


@pytest.mark.slow
async def test_killed_gateway_leaves_no_memory_in_the_replica() -> None:
    async with process("-m", "tests.transport.test_sharing") as child:
        port, token = (await line(child)).split()
        before = descriptors(child.pid)
        for _ in range(3):
            async with process("-c", CALLER, port, token) as caller:
                assert await line(caller) == "True" and await line(caller) == str(SUM)
                assert shmem(child.pid) > 5_000_000
        await until(lambda: descriptors(child.pid) == before and shmem(child.pid) < 3_000_000)


async def test_closed_pixels_are_an_error_of_their_stream() -> None:
    looking = Looking()
    server, port = await served(looking)
    connection = await Connection.open("127.0.0.1", port, server.token)
    image = shared_picture()
    late = connection.stream("look_late", image)
    assert await anext(late) == 0
    assert image.shared is not None
    image.shared.close()
    looking.go.set()
    with pytest.raises(ServeError, match="gone"):
        await anext(late)
    assert [item async for item in connection.stream("look", shared_picture())] == [(True, SUM)]
    connection.abort()
    await server.stop()


@pytest.mark.parametrize("answer", [b"", b"\0" * 48, b"x" * 47], ids=["nothing", "zeros", "too little"])
async def test_pixels_are_sent_to_a_server_that_cannot_read_our_memory(
    monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    monkeypatch.setattr("serve.transport.server._read", lambda probe: answer)
    server, port = await served(Looking())
    before = descriptors()
    connection = await Connection.open("127.0.0.1", port, server.token)
    assert not connection.shares_memory
    assert [item async for item in connection.stream("look", shared_picture())] == [(False, SUM)]
    connection.abort()
    await server.stop()
    await asyncio.sleep(0.01)
    assert descriptors() <= before


async def test_connection_opens_without_a_free_descriptor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(24, "Too many open files")

    server, port = await served(Looking())
    with monkeypatch.context() as patched:
        patched.setattr("os.memfd_create", refuse)
        connection = await Connection.open("127.0.0.1", port, server.token)
    assert not connection.shares_memory
    picture = Image(np.full((2, 2, 3), 9, np.uint8))
    assert [item async for item in connection.stream("look", picture)] == [(False, 108)]
    connection.abort()
    await server.stop()


if __name__ == "__main__":
    asyncio.run(main())
