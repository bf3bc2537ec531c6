"""A request that no model has room for is refused before its image is decoded."""

import re
from typing import Any

import pytest
from served import LLAVA, PALIGEMMA, URL, calling, message

from serve.api.app import create_app
from serve.api.metrics import Metrics
from serve.engines.fake import FakeEngine
from serve.media.image import Image
from serve.models import MODELS
from serve.router import Router
from serve.worker import Worker

TASK = ("/v1/tasks/vqa", {"image": URL, "question": "what?"})
CHAT = ("/v1/chat/completions", {"model": "vqa:*", "messages": [message()]})
MODEL = ("/v1/chat/completions", {"model": LLAVA, "messages": [message()], "n": 2})


class WorkerWithRoom(Worker):
    """A worker that says whether it is full."""

    room = True

    @property
    def full(self) -> bool:
        return not self.room


def workers(*room: bool) -> list[WorkerWithRoom]:
    routes = [WorkerWithRoom(MODELS[name], FakeEngine("red")) for name in (LLAVA, PALIGEMMA)]
    for route, has_room in zip(routes, room, strict=True):
        route.mark("ready", "ready")
        route.room = has_room
    return routes


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Image]:
    """Return the images whose pixels were read."""
    images: list[Image] = []
    pixels: Any = Image.pixels
    monkeypatch.setattr(Image, "pixels", property(lambda image: images.append(image) or pixels.fget(image)))
    return images


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), [TASK, CHAT, MODEL])
async def test_full_models_refuse_with_429_and_decode_nothing(
    path: str, body: dict[str, Any], stream: bool, decoded: list[Image]
) -> None:
    async with calling(create_app(Router(workers(False, False)))) as client:
        reply = await client.post(path, json={**body, "stream": stream})
        metrics = (await client.get("/metrics")).text
    assert reply.status_code == 429 and reply.headers["retry-after"] and not decoded
    assert reply.json()["error"]["code"] == "overloaded" and LLAVA in reply.json()["error"]["message"]
    assert f'code="overloaded",model="{LLAVA}"' in metrics


@pytest.mark.parametrize(("path", "body"), [TASK, CHAT, MODEL])
async def test_refusals_of_full_models_are_no_fast_replies_in_the_metrics(path: str, body: dict[str, Any]) -> None:
    metrics = Metrics()
    async with (
        calling(create_app(Router(workers(True, True)), metrics=metrics)) as client,
        calling(create_app(Router(workers(False, False)), metrics=metrics)) as full,
    ):
        await client.post(path, json=body)
        statuses = [(await full.post(path, json=body)).status_code for _ in range(9)]
    text = metrics.text().decode()
    assert statuses == [429] * 9 and re.search(rf'replies_total{{model="{LLAVA}",status="error",\S+ 9', text)
    assert re.search(rf'reply_seconds_count{{model="{LLAVA}",\S+ 1\.0', text)


@pytest.mark.parametrize(("path", "body"), [TASK, CHAT])
async def test_model_with_room_answers_beside_a_full_model(path: str, body: dict[str, Any]) -> None:
    async with calling(create_app(Router(workers(False, True)))) as client:
        assert (await client.post(path, json=body)).status_code == 200
