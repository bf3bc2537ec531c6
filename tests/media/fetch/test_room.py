"""Fetched files count against the budget before they are read."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from served import picture

from serve.api.pictures import Pictures
from serve.errors import BadRequest, Overloaded, ServeError, TooLarge
from serve.media.budget import Budget, Lease
from serve.media.image import MAX_BYTES, Image
from serve.router.deadline import Deadline
from tests.media.fetch import origin as origins
from tests.media.fetch.origin import Origin, Script, says, serving

MB = 2**20


@pytest.fixture
async def origin() -> AsyncIterator[Origin]:
    async with serving() as origin:
        yield origin


def stops_after(head: str, body: bytes) -> Script:
    """Says so much, and then nothing."""

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
async def test_a_file_is_held_before_it_has_come(origin: Origin, head: str, body: bytes, held: int) -> None:
    origin.scripts["/cat.png"] = stops_after(head, body)
    budget = Budget(100 * MB)
    pictures = Pictures(origin.fetcher(timeout_s=30), budget)
    fetching = asyncio.create_task(pictures.fetch(Image.at(origin.url()), Deadline.after(30)))
    assert await holds(budget, held)
    fetching.cancel()
    await asyncio.gather(fetching, return_exceptions=True)
    assert budget.held == 0


@pytest.mark.parametrize("size", [(64, 48), (300, 200), (1200, 900)])
async def test_what_has_come_is_held_at_its_own_size(origin: Origin, size: tuple[int, int]) -> None:
    file = picture(*size, format="JPEG")
    origin.scripts["/cat.png"] = says(file)
    budget = Budget(100 * MB)
    lease = await Pictures(origin.fetcher(timeout_s=30), budget).fetch(Image.at(origin.url()), Deadline.after(30))
    assert lease.size == budget.held == len(file)
    lease.release()
    assert budget.held == 0


@pytest.mark.parametrize("script", [origins.drip, origins.endless, says(bytes(3 * MB))])
async def test_what_has_no_room_is_refused_for_now(
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
async def test_what_cannot_be_used_gives_everything_back(origin: Origin, script: Script) -> None:
    origin.scripts["/cat.png"] = script
    budget = Budget(100 * MB)
    with pytest.raises(ServeError):
        await Pictures(origin.fetcher(timeout_s=30), budget).fetch(Image.at(origin.url()), Deadline.after(30))
    assert budget.held == 0


@pytest.mark.parametrize("length", ["20971521", "9" * 19, "9" * 5000])
async def test_a_length_beyond_the_limit_is_not_read(origin: Origin, length: str) -> None:
    origin.scripts["/cat.png"] = says(bytes(MB), content_length=length)
    with pytest.raises((TooLarge, BadRequest)):  # more digits than a length has are no HTTP to the client library
        await origin.fetcher(timeout_s=30).fetch(origin.url(), "image", MAX_BYTES)
