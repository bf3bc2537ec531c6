"""Images by URL in every kind of request: fetched once, then treated like uploaded ones."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from served import LLAVA, URL, calling, listening, message, picture, plain, router

from serve.api.app import create_app
from serve.engines.fake import FakeEngine
from tests.media.fetch import origin as origins
from tests.media.fetch.origin import Origin, says, serving

MODELS = {"alone": LLAVA, "merged": "vqa", "side by side": "vqa:*"}


@pytest.fixture
async def origin() -> AsyncIterator[Origin]:
    async with serving() as origin:
        origin.scripts["/cat.png"] = says(
            picture(), content_type="text/plain"
        )  # the bytes decide, not the content type
        origin.scripts["/large.jpg"] = says(picture(1200, 900, "JPEG"))
        origin.scripts["/cat.txt"] = says(b"No picture.", content_type="image/png")
        origin.scripts["/bad"] = origins.hang
        yield origin


def app(origin: Origin, *engines: FakeEngine, **policy: object) -> FastAPI:
    return create_app(router(*engines), fetcher=origin.fetcher(**policy))


async def ask(served: FastAPI, wire: str, image: str, **more: Any) -> httpx.Response:
    """Send a question. wire: "json" or "form" for a task, or a key of MODELS for a chat completion."""
    async with calling(served) as client:
        if wire == "json":
            return await client.post("/v1/tasks/vqa", json={"question": "what?", "image": image} | more)
        if wire == "form":
            fields = {"question": "what?", "image": image} | more
            parts = {name: (None, str(value)) for name, value in fields.items()}
            return await client.post("/v1/tasks/vqa", files=parts)
        body = {"model": MODELS[wire], "messages": [message(image=image)]} | more
        return await client.post("/v1/chat/completions", json=body)


def comparable(reply: httpx.Response) -> Any:
    """Return a response's JSON without ids and times."""
    whole = reply.json()
    for part in [
        whole,
        *whole.get("replies", []),
        *(choice.get("diptych") or {} for choice in whole.get("choices", [])),
    ]:
        for name in ("id", "created", "latency_ms", "ttft_ms"):
            part.pop(name, None)
    return whole


WIRES = ["json", "form", *MODELS]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("wire", WIRES)
async def test_image_by_url_is_answered_like_an_uploaded_image(origin: Origin, wire: str, stream: bool) -> None:
    engines = FakeEngine("red"), FakeEngine("blue")
    served = app(origin, *engines)
    sent, fetched = [await ask(served, wire, image, stream=stream) for image in (URL, origin.url())]
    assert (fetched.status_code, len(origin.heads)) == (200, 1), fetched.text
    if stream:
        assert sent.text.count("data:") == fetched.text.count("data:") and fetched.text.endswith("data: [DONE]\n\n")
    else:
        assert comparable(sent) == comparable(fetched)
    for engine in engines[: 1 if wire == "alone" else 2]:
        first, second = (prompt.image for prompt in engine.prompts)
        assert first is not None and second is not None
        assert np.array_equal(first.pixels, second.pixels) and first.digest == second.digest


@pytest.mark.slow
@pytest.mark.parametrize("wire", WIRES)
async def test_large_image_by_url_is_fetched_once(origin: Origin, wire: str) -> None:
    reply = await ask(app(origin), wire, origin.url("/large.jpg"))
    assert (reply.status_code, len(origin.heads)) == (200, 1), reply.text


async def test_image_is_fetched_once_for_several_choices_and_phrases(origin: Origin) -> None:
    reply = await ask(app(origin), "alone", origin.url("/large.jpg"), n=3)
    assert len(reply.json()["choices"]) == 3 and len(origin.heads) == 1
    async with calling(app(origin, FakeEngine("[0.1, 0.1, 0.2, 0.2]"), FakeEngine("<loc0001>" * 4 + " cat"))) as client:
        body = {"image": origin.url("/large.jpg"), "labels": ["cat", "dog"]}
        assert (await client.post("/v1/tasks/detect", json=body)).status_code == 200
    assert len(origin.heads) == 2


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize(
    ("path", "code"), [("/bad", "image_fetch_failed"), ("/cat.txt", "invalid_image"), (None, "invalid_image_url")]
)
async def test_failed_fetch_is_a_bad_request(
    origin: Origin, wire: str, path: str | None, code: str, stream: bool
) -> None:
    url = "https://169.254.169.254/latest" if path is None else origin.url(path)
    engines = FakeEngine("red"), FakeEngine("blue")
    reply = await ask(app(origin, *engines, timeout_s=0.1), wire, url, stream=stream)
    error = reply.json()["error"]
    param = "messages[0].content[0].image_url" if wire in MODELS else "image"
    assert (reply.status_code, error["param"], error["code"]) == (400, param, code)
    assert not any(engine.prompts for engine in engines)


@pytest.mark.parametrize(
    "more", [{"models": ["nobody"]}, {"question": ""}, {"merge": "dice"}, {"mood": 1}, {"quorum": 9}], ids=str
)
async def test_invalid_request_fetches_nothing(origin: Origin, more: dict[str, Any]) -> None:
    assert (await ask(app(origin), "json", origin.url(), **more)).status_code in (400, 404)
    assert origin.heads == []


@pytest.mark.slow
async def test_fetching_counts_towards_the_deadline(origin: Origin) -> None:
    for wire in ("json", "alone"):
        reply = await ask(app(origin, timeout_s=30), wire, origin.url("/bad"), deadline_s=0.2)
        assert reply.status_code == 400 and "did not arrive within" in reply.text

    async def slowly(*given: Any) -> None:
        await asyncio.sleep(0.3)
        await says(picture())(*given)

    origin.scripts["/slow.png"] = slowly
    served = app(origin, FakeEngine("red", first_delay_s=30), FakeEngine("red", first_delay_s=30))
    loop = asyncio.get_running_loop()
    began = loop.time()
    reply = await ask(served, "json", origin.url("/slow.png"), deadline_s=1.0)
    assert reply.status_code == 503 and 0.95 < loop.time() - began < 1.3 + 5  # a busy machine; alone it is 1.0
    assert "had not finished after 1 s" in reply.text  # counted from the request's head


async def test_disconnect_cancels_the_fetch(origin: Origin) -> None:
    served = app(origin, timeout_s=30)
    for stream in (False, True):
        origin.heads.clear()
        with listening(served) as url:
            async with httpx.AsyncClient() as client:
                body = {"question": "what?", "image": origin.url("/bad"), "stream": stream}
                job = asyncio.create_task(client.post(f"{url}/v1/tasks/vqa", json=body))
                async with asyncio.timeout(10):
                    while not origin.heads:
                        await asyncio.sleep(0.01)
                job.cancel()
                await asyncio.gather(job, return_exceptions=True)
            async with asyncio.timeout(10):
                while origin.open:
                    await asyncio.sleep(0.01)


async def test_openapi_document_mentions_image_urls() -> None:
    async with calling(plain()) as client:
        schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]
    assert "https URL" in json.dumps(schemas["VqaRequest"]["properties"]["image"])
    assert "https URL" in json.dumps(schemas["ImageUrl"])
