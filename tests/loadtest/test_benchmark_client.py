"""The benchmarks' client: whatever a server sends becomes a result, and a server that is gone a sentence."""

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from loadtest import same_answers
from loadtest.client import Client, Result
from loadtest.servers import NotAnswering
from serve.client.evaluation.items import Item

GOOD = b'{"usage": {"prompt_tokens": 60, "completion_tokens": 2}}'
CHUNK = b'data: {"choices": [{"delta": {"content": "red"}}]}\n\n'
DONE = b"data: [DONE]\n\n"


@pytest.fixture
async def url() -> AsyncIterator[str]:
    """Yield the URL of a server that sends back what it gets."""

    async def echo(request: web.Request) -> web.Response:
        return web.Response(body=await request.read())

    app = web.Application()
    app.router.add_post("/", echo)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    await runner.cleanup()


async def results(url: str, stream: bool, *bodies: bytes) -> list[Result]:
    return (await Client(url).closed(bodies, 1, stream=stream))[1]


@pytest.mark.parametrize("body", [b'{"usage": null}', b"[]", b"null", b"{}", b"{", b'{"usage": {"prompt_tokens": 1}}'])
async def test_answer_of_another_form_is_a_failed_result(url: str, body: bytes) -> None:
    bad, good = await results(url, False, body, GOOD)
    assert bad.error and not good.error and good.tokens == 2


@pytest.mark.parametrize("event", [b"[]", b"null", b'{"choices": null}', b'{"choices": [{"delta": null}]}'])
async def test_event_of_another_form_is_a_failed_result(url: str, event: bytes) -> None:
    bad, good = await results(url, True, b"data: " + event + b"\n\n" + DONE, CHUNK + DONE)
    assert bad.error and not good.error


async def test_comparison_of_answers_names_the_server_that_is_gone() -> None:
    server: Any = SimpleNamespace(url="http://127.0.0.1:9", log="/tmp/log.txt")
    item: Any = SimpleNamespace(name="scene", task="vqa", fields={}, load=lambda: b"")
    items: list[Item] = [item]
    with pytest.raises(NotAnswering, match=r"scene: Cannot connect .*log: /tmp/log.txt"):
        await same_answers._ask(server, items)
