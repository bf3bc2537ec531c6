"""Hostile images over HTTP: each is refused with one of our messages, and the next request is answered."""

import asyncio
import base64
import io
import logging
import resource

import PIL.Image
import pytest
from hypothesis import HealthCheck, given, settings
from served import LLAVA, calling, message, picture, plain, served

from serve.engines.fake import FakeEngine
from tests.media.test_image import mutated, png, quarters, saved

FORM = {"question": "what?"}


@pytest.mark.slow
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(mutated())
def test_mutated_file_is_answered_or_refused_and_the_next_request_answered(data: bytes) -> None:
    async def ask() -> None:
        async with calling(plain()) as client:
            hostile = await client.post("/v1/tasks/vqa", files={"image": data}, data=FORM)
            control = await client.post("/v1/tasks/vqa", files={"image": picture()}, data=FORM)
        assert control.status_code == 200
        if hostile.status_code != 200:
            error = hostile.json()["error"]
            assert hostile.status_code in (400, 413) and error["param"] == "image"
            assert error["code"] in ("invalid_image", "image_too_large")
            assert not any(word in error["message"] for word in ("0x", "PIL", "BytesIO", "Error", "<"))

    asyncio.run(ask())


async def test_small_file_of_a_huge_image_is_refused_without_decoding() -> None:
    """13,000 x 13,000 in one bit: decoded it takes 824 MB."""
    data = png(13_000, 13_000, 1, 0, b"\x00" * (13_000 * (1 + 1625)))
    assert len(data) < 25_000
    async with calling(plain()) as client:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        replies = [await client.post("/v1/tasks/vqa", files={"image": data}, data=FORM) for _ in range(5)]
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert [reply.status_code for reply in replies] == [413] * 5
    assert grown < 30 * 1024, f"memory grew by {grown} KiB"


async def test_metadata_of_a_photo_reaches_no_engine_reply_or_log(caplog: pytest.LogCaptureFixture) -> None:
    exif = PIL.Image.Exif()
    exif[0x010E] = "At home, 52.5N 13.4E"
    data = saved(quarters(), "JPEG", exif=exif.tobytes(), comment=b"At home, too")
    assert data.count(b"At home") == 2 and PIL.Image.open(io.BytesIO(data)).getexif()
    engines = FakeEngine("red"), FakeEngine("blue")
    with caplog.at_level(logging.DEBUG):
        async with calling(served(*engines)) as client:
            by_task = await client.post("/v1/tasks/vqa", files={"image": data}, data=FORM)
            url = "data:image/jpeg;base64," + base64.b64encode(data).decode()
            body = {"model": LLAVA, "messages": [message(image=url)]}
            alone = await client.post("/v1/chat/completions", json=body)
    for reply in (by_task, alone):
        assert reply.status_code == 200 and "At home" not in reply.text
    seen = [prompt.image for engine in engines for prompt in engine.prompts]
    assert len(seen) == 3
    for image in seen:
        assert image is not None and image.pil().info == {} and not image.pil().getexif()
    assert "At home" not in caplog.text and url[-200:] not in caplog.text
