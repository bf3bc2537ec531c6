"""What is not small is decoded in a process of its own, within what may be held in memory at once."""

import asyncio
import base64
import contextlib
import functools
import io
from typing import Any

import numpy as np
import PIL.Image
import pytest
from served import LLAVA, calling, message, picture, served

from serve.engines.fake import FakeEngine
from serve.errors import BadRequest, Overloaded, Unavailable
from serve.media import processes, reading
from serve.media.budget import Budget
from serve.media.image import Image, unread
from serve.media.outline import Outline
from serve.media.reading import SMALL, Reading
from serve.media.shared_pixels import SharedPixels

AREA = 1000 * 600
ROOM = unread(picture(1000, 600)).outline.peak_bytes


def large(data: bytes | None = None) -> Image:
    return unread(data or picture(1000, 600))


def room(pictures: float = 100) -> Reading:
    """A reading with memory for so many pictures while they are decoded."""
    return Reading(Budget(int(ROOM * pictures / 0.9) + 1))


@functools.cache
def noise() -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 1000, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


async def test_a_small_picture_is_read_where_it_is() -> None:
    small = unread(picture())
    looking = Reading().read(small)
    with pytest.raises(StopIteration):  # it never waits for anything
        looking.__aenter__().__await__().send(None)
    assert small.left_to_read == 0
    await looking.__aexit__(None, None, None)


@pytest.mark.parametrize("size", [(1, 1), (224, 224), (800, 600)])
async def test_the_pixels_of_small_ones_count_too(size: tuple[int, int]) -> None:
    held = Reading(Budget(4_000_000))
    small, other = unread(picture(*size)), unread(picture(*size))
    async with held.read(small), held.read(other):
        assert held.budget.held == 2 * 3 * size[0] * size[1]
        other.put_away()
        assert held.budget.held == 3 * size[0] * size[1]
    assert held.budget.held == 0


async def test_whoever_leaves_while_it_is_decoded_frees_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = asyncio.Event()

    async def never(*_: Any) -> SharedPixels:
        begun.set()
        await asyncio.sleep(60)
        raise AssertionError

    monkeypatch.setattr(reading, "_pixels", never)
    held = room()
    waiting = asyncio.ensure_future(contextlib.AsyncExitStack().enter_async_context(held.read(large())))
    await begun.wait()
    assert held.budget.held == ROOM
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert held.budget.held == 0 and processes.lanes().pictures.free >= 2


async def test_a_small_picture_in_a_large_file_is_decoded_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = list[Outline]()
    decode = reading._pixels

    async def counted(file: bytes, found: Outline) -> SharedPixels:
        elsewhere.append(found)
        return await decode(file, found)

    monkeypatch.setattr(reading, "_pixels", counted)
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(file, "PNG")
    image = unread(file.getvalue())
    async with room().read(image):
        assert image.left_to_read == 0 and (image.pixels == pixels).all()
    assert len(elsewhere) == 1 and elsewhere[0].area < SMALL


async def test_a_large_one_is_there_while_it_is_looked_at_and_then_put_away() -> None:
    photo, held = large(noise()), room()
    async with held.read(photo):
        assert photo.left_to_read == 0 and held.budget.held == 3 * AREA
        assert photo.shared is not None
    assert photo.left_to_read == AREA and held.budget.held == 0
    assert (photo.width, photo.height) == (1000, 600) and photo.left_to_read == AREA  # its size needs no pixels
    assert (photo.pixels == np.random.default_rng(0).integers(0, 256, (600, 1000, 3), dtype=np.uint8)).all()


async def test_who_has_seen_it_may_put_it_away_early() -> None:
    photo, held = large(), room()
    async with held.read(photo):
        photo.put_away()
        assert photo.left_to_read == AREA and held.budget.held == 0
    assert held.budget.held == 0


async def test_no_more_than_there_is_room_for_in_the_order_they_came() -> None:
    held, begun = room(1.5), list[int]()
    leave = [asyncio.Event() for _ in range(4)]

    async def look(at: int) -> None:
        async with held.read(large()):
            begun.append(at)
            await leave[at].wait()

    jobs = [asyncio.create_task(look(at)) for at in range(4)]
    async with asyncio.timeout(30):
        while len(begun) < 4:
            await asyncio.sleep(0.01)
            assert held.budget.held <= held.budget.total
            for at in begun:
                leave[at].set()
        await asyncio.gather(*jobs)
    assert begun == [0, 1, 2, 3] and held.budget.held == 0


async def test_whose_turn_does_not_come_in_time_is_told_so_and_one_that_leaves_is_forgotten() -> None:
    held = room(1)
    with await held.budget.acquire(ROOM):
        with pytest.raises(Overloaded) as caught:
            async with held.read(large(), within_s=0.01):
                pass
        assert (caught.value.code, caught.value.param) == ("overloaded", "image")
        waiting = asyncio.ensure_future(contextlib.AsyncExitStack().enter_async_context(held.read(large())))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    async with asyncio.timeout(10), held.read(large()):
        pass
    assert held.budget.held == 0


async def test_one_that_is_not_decoded_in_time_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: Any) -> SharedPixels:
        await asyncio.sleep(60)
        raise AssertionError

    monkeypatch.setattr(reading, "_pixels", never)
    held = room()
    with pytest.raises(Unavailable) as caught:
        async with held.read(large(), within_s=0.01):
            pass
    assert (caught.value.code, caught.value.param) == ("deadline_exceeded", "image")
    assert held.budget.held == 0


async def test_a_damaged_one_leaves_its_room_to_others() -> None:
    held = room(1.5)
    with pytest.raises(BadRequest, match="damaged"):
        async with held.read(large(noise()[:500_000])):
            pass
    assert held.budget.held == 0


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
    budget = Budget(2 * ROOM)
    monkeypatch.setattr(Budget, "of_this_process", lambda: budget)
    app = served(FakeEngine("red", delay_s=0.01))
    async with calling(app) as client, asyncio.timeout(60):
        forms = [{"files": {"image": picture(1000, 600)}, "data": {"question": "what?"}} for _ in range(8)]
        replies = await asyncio.gather(*(client.post("/v1/tasks/vqa", **form) for form in forms))
    assert [reply.status_code for reply in replies] == [200] * 8
    assert budget.held == 0
