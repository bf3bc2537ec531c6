"""A request's deadline counts from the arrival of its head, for every step of the request."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from served import LLAVA, URL, calling, message, served

from serve.engines.fake import FakeEngine
from serve.errors import Unavailable
from serve.router import merge_replies
from serve.router.route import Deadline

QUESTION = {"question": "what?", "image": URL}


async def test_deadline_counts_from_the_arrival() -> None:
    now = asyncio.get_running_loop().time()
    assert 0.4 < Deadline.after(1, arrived=now - 0.5).left() <= 0.5
    assert Deadline.after(1, arrived=now - 5).left() == 0
    with pytest.raises(Unavailable) as late:
        Deadline.after(1, arrived=now - 5).check()
    assert late.value.code == "deadline_exceeded"


async def test_earlier_deadline_is_a_share_of_the_remaining_time() -> None:
    whole = Deadline.after(30)
    part = whole.earlier(2 / 3)
    assert part.seconds == pytest.approx(20)
    assert whole.at - part.at == pytest.approx(10, abs=0.5)


async def slowly(body: bytes, seconds: float) -> AsyncIterator[bytes]:
    yield body[:50]
    await asyncio.sleep(seconds)
    yield body[50:]


BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "task": ("/v1/tasks/vqa", QUESTION),
    "one model": ("/v1/chat/completions", {"model": LLAVA, "messages": [message()]}),
    "fan-out": ("/v1/chat/completions", {"model": "vqa:*", "messages": [message()]}),
}


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("wire", list(BODIES))
async def test_time_of_the_body_counts(wire: str, stream: bool) -> None:
    path, fields = BODIES[wire]
    engine = FakeEngine("red")
    async with calling(served(engine)) as client:
        body = httpx.Request("POST", "http://x", json=fields | {"deadline_s": 0.05, "stream": stream}).content
        late = await client.post(path, content=slowly(body, 0.15), headers={"content-type": "application/json"})
        body = httpx.Request("POST", "http://x", json=fields | {"deadline_s": 30, "stream": stream}).content
        fine = await client.post(path, content=slowly(body, 0.15), headers={"content-type": "application/json"})
    assert (late.status_code, late.json()["error"]["code"]) == (503, "deadline_exceeded"), late.text
    assert fine.status_code == 200 and len(engine.prompts) == 1


@pytest.mark.slow
async def test_time_of_the_body_leaves_less_time_for_the_models() -> None:
    async with calling(served(FakeEngine("a b c d e f g h", delay_s=0.2))) as client:
        body = httpx.Request("POST", "http://x", json=QUESTION | {"deadline_s": 1.0}).content
        began = time.monotonic()
        reply = await client.post("/v1/tasks/vqa", content=slowly(body, 0.8))
    by_model = {model_reply["model"]: model_reply for model_reply in reply.json()["replies"]}
    assert by_model[LLAVA]["error"]["code"] == "deadline_exceeded"
    assert time.monotonic() - began < 1.6  # and not 0.8 + 1.0


@pytest.mark.slow
@pytest.mark.parametrize("wire", ["task", "fan-out"])
async def test_merge_that_takes_too_long_is_503(monkeypatch: pytest.MonkeyPatch, wire: str) -> None:
    path, fields = BODIES[wire]
    monkeypatch.setattr(merge_replies, "SHORT", 0)
    monkeypatch.setattr(merge_replies, "MERGE_S", 0.05)
    given_up = threading.Event()
    monkeypatch.setattr(merge_replies, "merge", lambda *_: given_up.wait(10))
    began = time.monotonic()
    async with calling(served()) as client:
        reply = await client.post(path, json=fields | {"deadline_s": 0.2})
        took = time.monotonic() - began
    given_up.set()
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "deadline_exceeded")
    assert took < 5
