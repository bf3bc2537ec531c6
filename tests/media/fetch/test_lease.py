"""Fetched files count against the memory budget before their body arrives."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from served import picture

from serve.api.media_loader import MediaLoader
from serve.errors import BadRequest, Overloaded, ServeError, TooLarge
from serve.media.budget import Budget, Lease
from serve.media.image import MAX_BYTES, Image
from serve.router.route import Deadline
from tests.media.fetch import origin as origins
from tests.media.fetch.origin import Origin, Script, says, serving

MB = 2**20


@pytest.fixture
async def origin() -> AsyncIterator[Origin]:
    async with serving() as origin:
        yield origin


def stops_after(head: str, body: bytes) -> Script:
    """Return a script that sends a head and a part of the body, and then waits."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 200 OK\r\n{head}\r\n".encode() + body)
        await writer.drain()
        await reader.read()

    return script


async def holds(budget: Budget, size: int) -> bool:
    for _ in range(500):
        if budget.held == size:
            return True
        await asyncio.sleep(0.01)
    return False


@pytest.mark.parametrize(
    ("head", "body", "held"),
    [
        ("content-length: 5000000\r\n", b"", 5_000_000),
        ("content-length: 300\r\n", b"x" * 10, 300),
        ("", b"x" * 1000, MAX_BYTES),
    ],
    ids=["declared", "small", "undeclared"],
)
async def test_file_is_leased_before_its_body_arrives(origin: Origin, head: str, body: bytes, held: int) -> None:
    origin.scripts["/cat.png"] = stops_after(head, body)
    budget = Budget(100 * MB)
    loader = MediaLoader(origin.fetcher(timeout_s=30), budget)
    fetching = asyncio.create_task(loader.fetch(Image.at_url(origin.url()), Deadline.after(30)))
    assert await holds(budget, held)
    fetching.cancel()
    await asyncio.gather(fetching, return_exceptions=True)
    assert budget.held == 0


@pytest.mark.parametrize("size", [(64, 48), (300, 200), (1200, 900)])
async def test_lease_shrinks_to_the_files_size(origin: Origin, size: tuple[int, int]) -> None:
    file = picture(*size, format="JPEG")
    origin.scripts["/cat.png"] = says(file)
    budget = Budget(100 * MB)
    loader = MediaLoader(origin.fetcher(timeout_s=30), budget)
    lease = await loader.fetch(Image.at_url(origin.url()), Deadline.after(30))
    assert lease.size == budget.held == len(file)
    lease.release()
    assert budget.held == 0


@pytest.mark.parametrize("script", [origins.drip, origins.endless, says(bytes(3 * MB))])
async def test_file_without_memory_is_overloaded(
    origin: Origin, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.media.fetch.fetcher.ROOM_S", 0.1)
    origin.scripts["/cat.png"] = script
    budget = Budget(60 * MB)
    with await budget.acquire(23 * MB, arriving=True):  # of 24 that may have arrived
        with pytest.raises(Overloaded) as refused:
            await origin.fetcher(timeout_s=30).fetch(origin.url(), "image", MAX_BYTES, 30, Lease(budget))
        assert (refused.value.status, refused.value.param, budget.held) == (429, "image", 23 * MB)


@pytest.mark.parametrize("script", [says(b"no picture"), says(bytes(21 * MB)), says(b"", "500 Error")])
async def test_unusable_file_releases_its_lease(origin: Origin, script: Script) -> None:
    origin.scripts["/cat.png"] = script
    budget = Budget(100 * MB)
    with pytest.raises(ServeError):
        await MediaLoader(origin.fetcher(timeout_s=30), budget).fetch(Image.at_url(origin.url()), Deadline.after(30))
    assert budget.held == 0


@pytest.mark.parametrize("length", ["20971521", "9" * 19, "9" * 5000])
async def test_a_length_beyond_the_limit_is_not_read(origin: Origin, length: str) -> None:
    origin.scripts["/cat.png"] = says(bytes(MB), content_length=length)
    with pytest.raises((TooLarge, BadRequest)):  # more digits than a length has are no HTTP to the client library
        await origin.fetcher(timeout_s=30).fetch(origin.url(), "image", MAX_BYTES)
