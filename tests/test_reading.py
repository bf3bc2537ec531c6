"""serve.reading: large pictures are read a few at a time, and so many pixels are in memory at once."""

import asyncio
import base64
import contextlib
import functools
import io
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
import pytest

from serve import image as images
from serve import reading
from serve.engines.fake import FakeEngine
from serve.errors import BadRequest, Unavailable
from serve.image import Image, unread
from serve.reading import SMALL, Reading
from tests.served import LLAVA, calling, message, picture, served

AREA = 1000 * 600


def large(data: bytes | None = None) -> Image:
    return unread(data or picture(1000, 600))


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Reading waits until the door is called, which tells how many were reading at the same time at most."""
    opened, lock = threading.Event(), threading.Lock()
    inside, most, load = [0], [0], images._load

    def counted(*given: Any) -> images.Pixels:
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        assert opened.wait(10)
        with lock:
            inside[0] -= 1
        return load(*given)

    monkeypatch.setattr(images, "_load", counted)

    def door() -> int:
        opened.set()
        return most[0]

    return door


async def test_a_small_picture_is_read_where_it_is() -> None:
    small = unread(picture())
    looking = Reading().read(small)
    with pytest.raises(StopIteration):  # it never waits for anything
        looking.__aenter__().__await__().send(None)
    assert small.left_to_read == 0
    await looking.__aexit__(None, None, None)


async def test_a_large_one_is_there_while_it_is_looked_at_and_then_put_away() -> None:
    photo, room = large(), Reading()
    async with room.read(photo):
        assert photo.left_to_read == 0 and room.held == AREA > SMALL
    assert photo.left_to_read == AREA and room.held == 0
    assert (photo.width, photo.height) == (1000, 600) and photo.left_to_read == AREA  # its size needs no pixels
    assert photo.pixels.shape == (600, 1000, 3)


async def test_who_has_seen_it_may_put_it_away_early() -> None:
    photo, room = large(), Reading()
    async with room.read(photo):
        photo.put_away()
        assert photo.left_to_read == AREA and room.held == 0
    assert room.held == 0


async def test_no_more_pixels_than_there_is_room_for_in_the_order_they_came() -> None:
    room, told = Reading(most=2 * AREA), list[int]()
    leave = [asyncio.Event() for _ in range(5)]

    async def look(at: int) -> None:
        async with room.read(large()):
            told.append(at)
            assert room.held <= room.most
            await leave[at].wait()

    jobs = [asyncio.create_task(look(at)) for at in range(5)]
    async with asyncio.timeout(10):
        for at in range(5):
            while len(told) < min(at + 2, 5):
                await asyncio.sleep(0.001)
            assert len(told) == min(at + 2, 5)
            leave[told[at]].set()
            await jobs[told[at]]
    assert sorted(told[:2]) == [0, 1] and told[2:] == [2, 3, 4] and room.held == 0


async def test_whose_turn_does_not_come_in_time_is_told_so_and_one_that_leaves_is_forgotten() -> None:
    room = Reading(most=AREA)
    async with room.read(large()):
        with pytest.raises(Unavailable) as caught:
            async with room.read(large(), within_s=0.01):
                pass
        assert (caught.value.code, caught.value.param) == ("overloaded", "image")
        waiting = asyncio.ensure_future(contextlib.AsyncExitStack().enter_async_context(room.read(large())))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    async with asyncio.timeout(10), room.read(large()):
        assert room.held == AREA
    assert room.held == 0


async def test_one_that_is_larger_than_the_room_is_read_alone() -> None:
    async with asyncio.timeout(10), Reading(most=1).read(large()):
        pass


async def test_a_damaged_one_leaves_its_room_to_others() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (600, 1000, 3), dtype=np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(noise).save(file, "PNG")
    room = Reading(most=AREA)
    with pytest.raises(BadRequest, match="damaged"):
        async with room.read(large(file.getvalue()[:500_000])):
            pass
    assert room.held == 0


async def test_a_few_threads_read(door: Callable[[], int]) -> None:
    room, photos = Reading(), [large() for _ in range(12)]
    async with contextlib.AsyncExitStack() as all_of_them:
        jobs = [asyncio.create_task(all_of_them.enter_async_context(room.read(photo))) for photo in photos]
        await asyncio.sleep(0.05)
        assert door() <= reading._READERS._max_workers
        await asyncio.gather(*jobs)
        assert room.held == 12 * AREA


async def test_while_the_model_speaks_the_picture_stays_until_the_engine_has_done_with_it() -> None:
    """In a conversation it is read in the model's process."""
    engine = FakeEngine("a b")
    url = "data:image/png;base64," + base64.b64encode(picture(1000, 600)).decode()
    async with calling(served(engine)) as client:
        reply = await client.post("/v1/chat/completions", json={"model": LLAVA, "messages": [message(image=url)]})
    assert reply.status_code == 200
    (prompt,) = engine.prompts
    assert prompt.image is not None and prompt.image.left_to_read == AREA  # put away again


async def test_a_fan_out_holds_its_room_until_it_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    most, take = [0], Reading._take

    async def seen(self: Reading, pixels: int) -> None:
        await take(self, pixels)
        most[0] = max(most[0], self.held)

    monkeypatch.setattr(Reading, "_take", seen)
    monkeypatch.setattr(Reading, "__init__", functools.partialmethod(Reading.__init__, 2 * AREA))
    async with calling(served(FakeEngine("red", delay_s=0.01))) as client, asyncio.timeout(20):
        forms = [{"files": {"image": picture(1000, 600)}, "data": {"question": "what?"}} for _ in range(8)]
        replies = await asyncio.gather(*(client.post("/v1/tasks/vqa", **form) for form in forms))
    assert [reply.status_code for reply in replies] == [200] * 8
    assert most == [2 * AREA]
