"""Tests what `make soak` counts as wrong: answers that never come or are cut, runs of which nothing was measured."""

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from loadtest import soak
from loadtest.client import session
from loadtest.soak import Sample, Soak, outcome

STREAM = "text/event-stream"
DELTA = b'event: delta\ndata: {"model": "one", "text": "a"}\n\n'
ERROR = b'event: error\ndata: {"error": {"message": "no", "code": "internal_error"}}\n\n'
DONE = b"data: [DONE]\n\n"
CHUNK = b'data: {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": null}]}\n\n'


@pytest.mark.parametrize(
    ("expected", "status", "data", "kind", "result"),
    [
        ("200", 200, DELTA + DONE, STREAM, "200"),
        ("200", 200, CHUNK + DONE, STREAM, "200"),
        ("200", 200, b'{"replies": [], "merged": {}}', "application/json", "200"),
        ("404", 404, b'{"error": {"code": "model_not_found"}}', "application/json", "404"),
        ("200", 503, b"{}", "application/json", "UNEXPECTED 503, not 200"),
        ("200", 200, DELTA, STREAM, "UNEXPECTED 200 with half an answer"),
        ("200", 200, b'{"repl', "application/json", "UNEXPECTED 200 with half an answer"),
        ("200", 200, DELTA + ERROR + DONE, STREAM, "UNEXPECTED 200 with the error internal_error"),
    ],
)
def test_outcome_names_the_fault_of_an_answer(expected: str, status: int, data: bytes, kind: str, result: str) -> None:
    assert outcome(expected, status, data, kind) == result


async def test_request_without_an_answer_is_no_client_that_left() -> None:
    async def wait(_: web.Request) -> web.Response:
        await asyncio.sleep(60)
        raise AssertionError

    app = web.Application()
    app.router.add_post("/", wait)
    runner = web.AppRunner(app, shutdown_timeout=0.01)  # 0 waits for ever
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        run = Soak(_server(f"http://127.0.0.1:{runner.addresses[0][1]}"), 1)
        async with session(0.2) as http:
            await run._ask(http, "200", "/", {}, None)
            await run._ask(http, "200", "/", {}, 0.05)
    finally:
        await runner.cleanup()
    assert run.outcomes == {"UNEXPECTED no answer within 0.2 s": 1, "left": 1}


async def test_server_that_is_gone_at_the_end_misses_and_keeps_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak.asyncio, "sleep", _at_once)
    run = Soak(_server("http://127.0.0.1:9"), 100)
    await run.run(0.0)
    assert run.samples and any(name.startswith("UNEXPECTED no metrics at the end") for name in run.outcomes)
    assert not soak._report(run)


def test_run_of_too_few_samples_is_not_met(capsys: pytest.CaptureFixture[str]) -> None:
    sample = Sample(0, 0, {"gateway": 1.0}, {"gateway": 1}, {"gateway": 1})
    run: Any = SimpleNamespace(outcomes=Counter({"200": 5}), samples=[sample], left_speaking=0, left_running=0)
    assert not soak._report(run)
    assert "MISSED memory 0.000 +- inf" in capsys.readouterr().out


SLEEP = asyncio.sleep


async def _at_once(_: float) -> None:
    await SLEEP(0)


def _server(url: str) -> Any:
    async def quiet(_: float) -> float:
        return 0.0

    tree = SimpleNamespace(memory=dict, descriptors=dict, threads=dict)
    return SimpleNamespace(url=url, tree=tree, quiet=quiet, speaking=lambda: 0)
