"""Images are decoded within the memory budget, large ones in a process of their own."""

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
from serve.media import decoding, processes
from serve.media.budget import Budget
from serve.media.decoding import SMALL, MediaDecoder
from serve.media.image import Image, undecoded_image
from serve.media.outline import Outline
from serve.media.shared_pixels import SharedPixels

AREA = 1000 * 600
ROOM = undecoded_image(picture(1000, 600)).outline.peak_bytes


def large(data: bytes | None = None) -> Image:
    return undecoded_image(data or picture(1000, 600))


def room(pictures: float = 100) -> MediaDecoder:
    """Return a decoder with memory for this many images while they are decoded."""
    return MediaDecoder(Budget(int(ROOM * pictures / 0.9) + 1))


@functools.cache
def noise() -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 1000, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


async def test_small_image_is_decoded_without_waiting() -> None:
    small = undecoded_image(picture())
    looking = MediaDecoder().decode_image(small)
    with pytest.raises(StopIteration):  # it awaits nothing
        looking.__aenter__().__await__().send(None)
    assert small.undecoded_pixels == 0
    await looking.__aexit__(None, None, None)


@pytest.mark.parametrize("size", [(1, 1), (224, 224), (800, 600)])
async def test_pixels_of_small_images_count_against_the_budget(size: tuple[int, int]) -> None:
    decoder = MediaDecoder(Budget(4_000_000))
    small, other = undecoded_image(picture(*size)), undecoded_image(picture(*size))
    async with decoder.decode_image(small), decoder.decode_image(other):
        assert decoder.budget.held == 2 * 3 * size[0] * size[1]
        other.release_pixels()
        assert decoder.budget.held == 3 * size[0] * size[1]
    assert decoder.budget.held == 0


async def test_cancelling_a_decode_releases_its_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = asyncio.Event()

    async def never(*_: Any) -> SharedPixels:
        begun.set()
        await asyncio.sleep(60)
        raise AssertionError

    monkeypatch.setattr(decoding, "_decode_file", never)
    decoder = room()
    waiting = asyncio.ensure_future(contextlib.AsyncExitStack().enter_async_context(decoder.decode_image(large())))
    await begun.wait()
    assert decoder.budget.held == ROOM
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert decoder.budget.held == 0 and processes.queues().images.free >= 2


async def test_a_small_image_in_a_large_file_is_decoded_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = list[Outline]()
    decode = decoding._decode_file

    async def counted(file: bytes, outline: Outline) -> SharedPixels:
        elsewhere.append(outline)
        return await decode(file, outline)

    monkeypatch.setattr(decoding, "_decode_file", counted)
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(file, "PNG")
    image = undecoded_image(file.getvalue())
    async with room().decode_image(image):
        assert image.undecoded_pixels == 0 and (image.pixels == pixels).all()
    assert len(elsewhere) == 1 and elsewhere[0].area < SMALL


async def test_large_image_has_pixels_within_the_block_only() -> None:
    photo, decoder = large(noise()), room()
    async with decoder.decode_image(photo):
        assert photo.undecoded_pixels == 0 and decoder.budget.held == 3 * AREA
        assert photo.shared is not None
    assert photo.undecoded_pixels == AREA and decoder.budget.held == 0
    assert (photo.width, photo.height) == (1000, 600) and photo.undecoded_pixels == AREA  # its size needs no pixels
    assert (photo.pixels == np.random.default_rng(0).integers(0, 256, (600, 1000, 3), dtype=np.uint8)).all()


async def test_pixels_can_be_released_before_the_block_ends() -> None:
    photo, decoder = large(), room()
    async with decoder.decode_image(photo):
        photo.release_pixels()
        assert photo.undecoded_pixels == AREA and decoder.budget.held == 0
    assert decoder.budget.held == 0


async def test_images_beyond_the_budget_wait_in_order() -> None:
    decoder, begun = room(1.5), list[int]()
    leave = [asyncio.Event() for _ in range(4)]

    async def look(at: int) -> None:
        async with decoder.decode_image(large()):
            begun.append(at)
            await leave[at].wait()

    jobs = [asyncio.create_task(look(at)) for at in range(4)]
    async with asyncio.timeout(30):
        while len(begun) < 4:
            await asyncio.sleep(0.01)
            assert decoder.budget.held <= decoder.budget.total
            for at in begun:
                leave[at].set()
        await asyncio.gather(*jobs)
    assert begun == [0, 1, 2, 3] and decoder.budget.held == 0


async def test_waiter_past_its_deadline_is_overloaded_and_a_cancelled_waiter_is_dropped() -> None:
    decoder = room(1)
    with await decoder.budget.acquire(ROOM):
        with pytest.raises(Overloaded) as caught:
            async with decoder.decode_image(large(), within_s=0.01):
                pass
        assert (caught.value.code, caught.value.param) == ("overloaded", "image")
        waiting = asyncio.ensure_future(contextlib.AsyncExitStack().enter_async_context(decoder.decode_image(large())))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    async with asyncio.timeout(10), decoder.decode_image(large()):
        pass
    assert decoder.budget.held == 0


async def test_decode_past_its_deadline_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: Any) -> SharedPixels:
        await asyncio.sleep(60)
        raise AssertionError

    monkeypatch.setattr(decoding, "_decode_file", never)
    decoder = room()
    with pytest.raises(Unavailable) as caught:
        async with decoder.decode_image(large(), within_s=0.01):
            pass
    assert (caught.value.code, caught.value.param) == ("deadline_exceeded", "image")
    assert decoder.budget.held == 0


async def test_damaged_image_releases_its_lease() -> None:
    decoder = room(1.5)
    with pytest.raises(BadRequest, match="damaged"):
        async with decoder.decode_image(large(noise()[:500_000])):
            pass
    assert decoder.budget.held == 0


async def test_chat_image_is_decoded_by_the_engine_and_released_after_its_use() -> None:
    engine = FakeEngine("a b")
    url = "data:image/png;base64," + base64.b64encode(picture(1000, 600)).decode()
    async with calling(served(engine)) as client:
        reply = await client.post("/v1/chat/completions", json={"model": LLAVA, "messages": [message(image=url)]})
    assert reply.status_code == 200
    (prompt,) = engine.prompts
    assert prompt.image is not None and prompt.image.undecoded_pixels == AREA  # released again


@pytest.mark.slow
async def test_fan_outs_hold_their_leases_until_the_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    budget = Budget(2 * ROOM)
    monkeypatch.setattr(Budget, "of_this_process", lambda: budget)
    app = served(FakeEngine("red", delay_s=0.01))
    async with calling(app) as client, asyncio.timeout(60):
        forms = [{"files": {"image": picture(1000, 600)}, "data": {"question": "what?"}} for _ in range(8)]
        replies = await asyncio.gather(*(client.post("/v1/tasks/vqa", **form) for form in forms))
    assert [reply.status_code for reply in replies] == [200] * 8
    assert budget.held == 0
