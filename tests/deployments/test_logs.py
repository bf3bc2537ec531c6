"""Logs are lines of JSON with request ids, without text of clients."""

import asyncio
import gc
import io
import json
import logging
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from served import URL, Server, calling, router

from deployments import logs
from serve.api.app import create_app
from serve.api.authentication import Access
from serve.api.keys import Keys
from serve.api.request_limits import ACCESS
from serve.engines.base import Prompt
from serve.engines.fake import FakeEngine
from serve.errors import ModelError
from serve.tracing import REQUEST_ID
from serve.transport.connection import Connection
from serve.transport.server import StreamServer

KEY = "s3cret-of-alice"
HEADERS = {"authorization": f"Bearer {KEY}", "x-request-id": "mine-7"}
VQA = {"image": URL, "question": "what colour is the hidden thing?"}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv(logs.FILE, str(tmp_path / "log"))
    monkeypatch.delenv(logs.WORDS, raising=False)
    yield tmp_path / "log"
    for logger in map(logging.getLogger, logs.OURS):
        for handler in logger.handlers:
            handler.close()
        logger.handlers, logger.propagate = [], True
    ACCESS.setLevel(logging.NOTSET)
    logging.setLogRecordFactory(logging.LogRecord)


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def stumble(prompt: Prompt) -> str:
    raise KeyError(prompt.text)


async def ask(engine: FakeEngine | None = None, *paths: str) -> None:
    app = create_app(router(engine), access=Access(keys=Keys([f"alice:{KEY}"])))
    async with calling(app) as client:
        await client.post("/v1/tasks/vqa", json=VQA, headers=HEADERS)
        for path in paths:
            await client.get(path, headers=HEADERS)


async def test_access_log_has_a_line_for_each_request_but_probes(file: Path) -> None:
    logs.configure("gateway", access_log=True)
    await ask(None, "/a-path-of-somebodys", "/health", "/ready", "/metrics")
    first, second = lines(file)
    assert (first["level"], first["process"], first["logger"]) == ("info", "gateway", "serve.access")
    assert (first["method"], first["route"], first["status"]) == ("POST", "/v1/tasks/vqa", 200)
    assert (first["request_id"], first["key"]) == ("mine-7", "alice")
    assert 0 < first["ms"] < 60_000 and first["time"].endswith("+00:00")
    assert (second["route"], second["status"]) == ("unmatched", 404)
    assert not [word for word in ("hidden", "somebodys", "base64", KEY) if word in file.read_text()]


async def test_access_log_is_off_by_default(file: Path) -> None:
    logs.configure("gateway")
    await ask()
    assert not lines(file)


async def test_exception_in_a_request_is_logged_without_its_message(file: Path) -> None:
    logs.configure("gateway")
    await ask(FakeEngine(stumble))
    (line,) = lines(file)
    assert (line["level"], line["request_id"]) == ("error", "mine-7")
    assert line["exception"].endswith("KeyError") and "stumble" in line["exception"]
    assert "hidden" not in file.read_text()


async def test_exception_messages_can_be_switched_on(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(logs.WORDS, "1")
    logs.configure("gateway")
    await ask(FakeEngine(stumble))
    assert "hidden" in lines(file)[0]["exception"]


def test_exception_outside_a_request_is_logged_in_full(file: Path) -> None:
    logs.configure("toy-llava")
    try:
        raise OSError("the disk is full")
    except OSError:
        logging.getLogger("deployments.replica").exception("it did not start")
    (line,) = lines(file)
    assert line["process"] == "toy-llava" and "the disk is full" in line["exception"] and "request_id" not in line


SECRET = "what colour is the hidden thing?"


@pytest.fixture
def text(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """Collect what a handler that is not ours writes, without `DIPTYCH_LOG`."""
    monkeypatch.delenv(logs.FILE, raising=False)
    monkeypatch.delenv(logs.WORDS, raising=False)
    for logger in map(
        logging.getLogger, ("uvicorn", "uvicorn.error", "ray", "ray.serve")
    ):  # other tests silence their servers, and Ray and Ray Serve set up their own
        monkeypatch.setattr(logger, "disabled", False)
        monkeypatch.setattr(logger, "propagate", True)
        monkeypatch.setattr(logger, "handlers", [])
        monkeypatch.setattr(logger, "level", logging.INFO)
        monkeypatch.setattr(logger, "_cache", {})
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(logging.Formatter("%(name)s %(levelname)s %(message)s"))
    logging.getLogger().addHandler(handler)
    logs.configure("gateway")
    yield written
    logging.getLogger().removeHandler(handler)
    logging.setLogRecordFactory(logging.LogRecord)


def inner() -> None:
    try:
        raise KeyError(SECRET)
    except KeyError as error:
        raise ValueError(f"no such thing: {error}") from error


@pytest.mark.parametrize("begun", [False, True], ids=["before the reply", "within it"])
def test_uvicorn_logs_a_bug_without_its_message(text: io.StringIO, begun: bool) -> None:
    app = create_app(router())

    async def stumbling(scope: Any, receive: Any, send: Any) -> None:
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"a", "more_body": True})
        inner()

    app.mount("/bug", stumbling)
    with Server(uvicorn.Config(app, port=0, log_config=None, lifespan="off")).running() as address:
        try:
            assert httpx.get(f"{address}/bug/", timeout=20).status_code == 500
        except httpx.RemoteProtocolError:
            assert begun
    assert "Exception in ASGI application" in text.getvalue() and "inner" in text.getvalue()
    assert "KeyError" in text.getvalue() and "ValueError" in text.getvalue()
    assert "hidden" not in text.getvalue()


async def test_exception_that_no_task_awaited_is_logged_without_its_message(text: io.StringIO) -> None:
    async def never_awaited() -> None:
        inner()

    task = asyncio.create_task(never_awaited())
    await asyncio.sleep(0.01)
    assert task.done()
    del task
    gc.collect()
    assert "Task exception was never retrieved" in text.getvalue() and "ValueError" in text.getvalue()
    assert "hidden" not in text.getvalue()


@pytest.mark.parametrize("name", ["vllm.engine", "ray.serve", "uvicorn.error", "serve.router.model_call", "somebodys"])
async def test_any_logger_within_a_request_omits_messages(text: io.StringIO, name: str) -> None:
    REQUEST_ID.set("mine-8")
    try:
        inner()
    except ValueError as error:
        logging.getLogger(name).exception("it failed")
        logging.getLogger(name).error("it failed: %s (%d)", error, 3)
        logging.getLogger(name).error("and so", exc_info=error)
    assert text.getvalue().count("ValueError") >= 3 and "it failed: ValueError (3)" in text.getvalue()
    assert "hidden" not in text.getvalue()


async def test_exception_in_a_replica_is_logged_without_its_message(text: io.StringIO) -> None:
    async def answer(text: str) -> Any:
        yield text
        inner()

    async def statuses() -> str:
        return "fine"

    server = StreamServer({"answer": answer}, statuses)
    connection = await Connection.open("127.0.0.1", await server.start("127.0.0.1"), server.token)
    REQUEST_ID.set("mine-9")
    with pytest.raises(ModelError):
        async for _ in connection.stream("answer", "x"):
            pass
    connection.close()
    await server.stop()
    assert "request mine-9: answer failed" in text.getvalue() and "inner" in text.getvalue()
    assert "hidden" not in text.getvalue()


async def test_any_logger_outside_a_request_keeps_messages(text: io.StringIO) -> None:
    try:
        raise OSError("the disk is full")
    except OSError as error:
        logging.getLogger("ray.serve").exception("it did not start")
        logging.getLogger("deployments.app").error("no: %s", error)
    assert text.getvalue().count("the disk is full") == 3  # once as a line of code


async def test_record_without_messages_can_be_pickled(text: io.StringIO) -> None:
    REQUEST_ID.set("mine-10")
    try:
        inner()
    except ValueError:
        record = logging.getLogger("a").makeRecord("a", 40, "f", 1, "m %s", ("x",), sys.exc_info())
    assert "hidden" not in str(vars(pickle.loads(pickle.dumps(record))))


def test_handlers_are_unchanged_without_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(logs.FILE, raising=False)
    logs.configure("gateway", access_log=True)
    assert not [name for name in logs.OURS if logging.getLogger(name).handlers]
    logging.setLogRecordFactory(logging.LogRecord)
