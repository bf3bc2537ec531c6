"""Memory leases of request bodies, from the first byte until the body is parsed."""

import asyncio
import base64
import functools
import gc
import io
import json
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import PIL.Image
import pytest
from asgi_calls import call
from served import LLAVA, URL, calling, message, router

from serve.api.app import create_app
from serve.api.authentication import Access
from serve.api.body import in_thread
from serve.api.keys import Keys
from serve.engines.fake import FakeEngine
from serve.limits import Limits
from serve.media.budget import Budget

MB = 2**20
MAX_BODY = Limits().max_body
JSON = {"content-type": "application/json"}
BOUNDARY = "b0"
FORM = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
VQA = json.dumps({"image": URL, "question": "what?"}).encode()


def length(size: int) -> dict[str, str]:
    return JSON | {"content-length": str(size)}


class Client:
    """A client that sends its body piece by piece, when the test calls `send`."""

    def __init__(self, app: Any, headers: dict[str, str], path: str = "/v1/tasks/vqa") -> None:
        self.more: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.task = asyncio.create_task(call(app, path, self._pieces(), headers=headers))

    async def _pieces(self) -> AsyncIterator[bytes]:
        while (piece := await self.more.get()) is not None:
            yield piece

    async def send(self, *pieces: bytes | None) -> None:
        for piece in pieces:
            self.more.put_nowait(piece)
        await settled()

    async def leave(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_declared_body_is_leased_before_arrival() -> None:
    budget = Budget(100 * MB)
    client = Client(create_app(router(), budget=budget), length(24 * MB))
    await settled()
    assert budget.held == 24 * MB
    await client.leave()
    assert budget.held == 0


@pytest.mark.parametrize(
    ("pieces", "held"),
    [([MB // 8] * 2, MB // 4), ([MB // 8] * 3, Limits().max_body), ([MB] * 20, Limits().max_body), ([1], MB // 4)],
)
async def test_lease_of_chunked_body_grows_with_the_body(pieces: list[int], held: int) -> None:
    budget = Budget(100 * MB)
    client = Client(create_app(router(), budget=budget), JSON)
    await client.send(*(b"x" * piece for piece in pieces))
    assert budget.held == held
    await client.leave()
    assert budget.held == 0


@pytest.mark.slow
@pytest.mark.parametrize("declared", [True, False])
async def test_eighty_waiting_clients_with_24_mb_each_stay_within_the_budget(declared: bool) -> None:
    budget = Budget(200 * MB)
    app = create_app(router(), budget=budget, limits=Limits(body_timeout_s=1.0))
    clients = [Client(app, length(25 * MB) if declared else JSON) for _ in range(80)]
    for client in clients:
        client.more.put_nowait(b" " * (300 * 1024))
    await settled()
    assert 0 < budget.held <= budget.total // 2
    async with calling(app) as client_within_limits:  # a small question is answered meanwhile
        assert (await client_within_limits.post("/v1/tasks/vqa", content=VQA, headers=JSON)).status_code == 200
    replies = await asyncio.gather(*(client.task for client in clients))
    late, refused = [[reply for reply in replies if reply.status == status] for status in (408, 429)]
    assert len(late) + len(refused) == 80 and refused and late
    assert all(reply.headers["retry-after"] for reply in refused)
    assert budget.held == 0


@pytest.mark.parametrize("size", [5, 15, 28])
async def test_body_larger_than_the_budget_is_refused_at_once(size: int) -> None:
    app = create_app(router(), budget=Budget(10 * MB))
    reply = await asyncio.wait_for(Client(app, length(size * MB)).task, 5)
    assert reply.status == 413


async def test_request_without_a_key_leases_nothing() -> None:
    budget = Budget(100 * MB)
    app = create_app(router(), budget=budget, access=Access(keys=Keys(["a:secret-key"])))
    reply = await asyncio.wait_for(Client(app, length(24 * MB)).task, 5)
    assert (reply.status, budget.held) == (401, 0)


@pytest.mark.parametrize(
    "fault",
    [b"no JSON", b'{"question": "what?"}', VQA.replace(b"base64,", b"base64,!"), b"[" * 200_000, b" " * (29 * MB)],
    ids=["no JSON", "no image", "no base64", "deep", "large"],
)
async def test_refused_request_frees_its_lease(fault: bytes) -> None:
    budget = Budget(200 * MB)
    app = create_app(router(), budget=budget)
    for path in ("/v1/tasks/vqa", "/v1/chat/completions"):
        reply = await call(app, path, iter([fault]), headers=JSON)
        assert reply.status in (400, 413) and budget.held == 0


async def test_client_that_leaves_frees_its_lease() -> None:
    budget = Budget(100 * MB)
    engine = FakeEngine("red", first_delay_s=30)
    client = Client(create_app(router(engine, engine), budget=budget), length(len(VQA)))
    await client.send(VQA, None)
    while not engine.prompts:
        await asyncio.sleep(0.01)
    assert budget.held > 0
    await client.leave()
    assert budget.held == 0


@functools.cache
def noise() -> bytes:
    """Return a PNG of noise, which cannot be compressed: 3.4 MB as a file and as pixels."""
    out = io.BytesIO()
    pixels = np.random.default_rng(5).integers(0, 256, (1000, 1150, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(out, "PNG", compress_level=1)
    return out.getvalue()


def in_json(fields: dict[str, Any], file: bytes) -> Iterator[bytes]:
    before, after = json.dumps(fields).split("PICTURE")
    yield before.encode()
    for at in range(0, len(file), 3 * 16384):
        yield base64.b64encode(file[at : at + 3 * 16384])
    yield after.encode()


def in_form(file: bytes) -> Iterator[bytes]:
    head = f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="'
    yield f'{head}question"\r\n\r\nwhat?\r\n{head}image"; filename="x.png"\r\n\r\n'.encode()
    for at in range(0, len(file), 65536):
        yield file[at : at + 65536]
    yield f"\r\n--{BOUNDARY}--\r\n".encode()


DATA = "data:image/png;base64,PICTURE"
REQUESTS: dict[str, tuple[str, dict[str, Any] | None]] = {
    "task": ("/v1/tasks/vqa", {"question": "what?", "image": DATA}),
    "task, stream": ("/v1/tasks/vqa", {"question": "what?", "image": DATA, "stream": True}),
    "form": ("/v1/tasks/vqa", None),
    "one model": ("/v1/chat/completions", {"model": LLAVA, "messages": [message(image=DATA)]}),
    "fan-out": ("/v1/chat/completions", {"model": "vqa:*", "messages": [message(image=DATA)]}),
    "one model, stream": ("/v1/chat/completions", {"model": LLAVA, "messages": [message(image=DATA)], "stream": True}),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(REQUESTS))
async def test_only_file_and_pixels_are_leased_while_models_answer(kind: str) -> None:
    """Check the memory in use; with the base64 body and its parsed text it would be 9 MB more."""
    file = noise()
    path, fields = REQUESTS[kind]
    engine = FakeEngine("red", first_delay_s=30, kept=0)
    app = create_app(router(engine, engine), budget=Budget(400 * MB))
    gc.collect()
    tracemalloc.start()
    try:
        pieces = in_form(file) if fields is None else in_json(fields, file)
        asking = asyncio.create_task(call(app, path, pieces, headers=FORM if fields is None else JSON))
        del pieces
        while not engine.speaking and not asking.done():
            await asyncio.sleep(0.01)
        assert not asking.done()
        await asyncio.sleep(0.05)
        gc.collect()
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    pixels = 3 * 1000 * 1150
    assert held < len(file) + pixels + 1.5 * MB, f"{held / MB:.1f} MB for a file of {len(file) / MB:.1f}"


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 10, 20])
async def test_largest_image_fits_into_every_kind_of_body(size: int) -> None:
    """Check that the only error is that the bytes are not an image."""
    file = bytes(size * MB)
    app = create_app(router(), budget=Budget(400 * MB))
    chat = {"model": LLAVA, "messages": [message("w" * 100_000, DATA)]}
    for path, pieces, headers in (
        ("/v1/tasks/vqa", in_json({"question": "what?", "image": DATA}, file), JSON),
        ("/v1/chat/completions", in_json(chat, file), JSON),
        ("/v1/tasks/vqa", in_form(file), FORM),
    ):
        reply = await call(app, path, pieces, headers=headers)
        assert (reply.status, json.loads(reply.body)["error"]["code"]) == (400, "invalid_image"), reply.body


@pytest.mark.parametrize("name", ["question", "labels", "models", "unknown", "image"])
async def test_only_files_of_a_form_may_be_large(name: str) -> None:
    part = f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n'.encode()
    pieces = [part, *[b"a," * 32768] * 40, f"\r\n--{BOUNDARY}--\r\n".encode()]
    reply = await call(create_app(router()), "/v1/tasks/detect", iter(pieces), headers=FORM)
    error = json.loads(reply.body)["error"]
    assert (reply.status, error["param"]) == (413, name)


async def test_budget_is_exported_to_prometheus() -> None:
    budget = Budget(50 * MB)
    app = create_app(router(), budget=budget)
    client = Client(app, length(15 * MB))
    await call(app, "/v1/tasks/vqa", iter([VQA]), headers=length(28 * MB))
    await settled()
    text = (await call(app, "/metrics", method="GET")).body.decode()
    await client.leave()
    values = dict(line.split(" ") for line in text.splitlines() if line.startswith("diptych_memory"))
    assert float(values["diptych_memory_budget_bytes"]) == 50 * MB
    assert float(values["diptych_memory_held_bytes"]) == 15 * MB
    assert float(values["diptych_memory_refusals_total"]) == 1


async def test_leases_count_in_the_next_app() -> None:
    """Check that leases of running requests of the old app still count after a change of config."""
    budget = Budget(100 * MB)
    client = Client(create_app(router(), budget=budget), length(24 * MB))
    await settled()
    create_app(router(), budget=budget)
    budget.resize(60 * MB)
    assert budget.held == 24 * MB
    reply = await asyncio.wait_for(Client(create_app(router(), budget=budget), length(25 * MB)).task, 5)
    assert reply.status == 413  # 40 % of 60 MB
    await client.leave()
    assert budget.held == 0


async def test_bodies_are_parsed_in_sequence() -> None:
    running, most = 0, 0

    def parse() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.005)
        running -= 1

    await asyncio.gather(*(in_thread(MB, parse) for _ in range(8)))
    assert most == 1


async def test_large_body_does_not_delay_small_bodies() -> None:
    over = threading.Event()
    large = asyncio.ensure_future(in_thread(20 * MB, over.wait, 10.0))
    try:
        assert await in_thread(MB, len, b"abc") == 3
        assert not large.done()
    finally:
        over.set()
        assert await large
