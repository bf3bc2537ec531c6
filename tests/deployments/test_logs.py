"""Our log: a line of JSON each, with whose request it is about, and never what was asked."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served import URL, calling, router

from deployments import logs
from serve.api import create_app
from serve.engines.base import Prompt
from serve.engines.fake import FakeEngine
from serve.wire.edge import ACCESS
from serve.wire.guard import Access
from serve.wire.keys import Keys

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


async def test_a_line_for_each_request_that_is_one(file: Path) -> None:
    logs.configure("gateway", access=True)
    await ask(None, "/a-path-of-somebodys", "/health", "/ready", "/metrics")
    first, second = lines(file)
    assert (first["level"], first["process"], first["logger"]) == ("info", "gateway", "serve.access")
    assert (first["method"], first["route"], first["status"]) == ("POST", "/v1/tasks/vqa", 200)
    assert (first["request_id"], first["key"]) == ("mine-7", "alice")
    assert 0 < first["ms"] < 60_000 and first["time"].endswith("+00:00")
    assert (second["route"], second["status"]) == ("unmatched", 404)
    assert not [word for word in ("hidden", "somebodys", "base64", KEY) if word in file.read_text()]


async def test_no_lines_for_requests_where_none_are_wanted(file: Path) -> None:
    logs.configure("gateway")
    await ask()
    assert not lines(file)


async def test_a_fault_is_told_by_where_it_was_and_not_by_its_words(file: Path) -> None:
    logs.configure("gateway")
    await ask(FakeEngine(stumble))
    (line,) = lines(file)
    assert (line["level"], line["request_id"]) == ("error", "mine-7")
    assert line["exception"].endswith("KeyError") and "stumble" in line["exception"]
    assert "hidden" not in file.read_text()


async def test_its_words_can_be_switched_on(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(logs.WORDS, "1")
    logs.configure("gateway")
    await ask(FakeEngine(stumble))
    assert "hidden" in lines(file)[0]["exception"]


def test_what_befalls_no_request_is_told_in_full(file: Path) -> None:
    logs.configure("toy-llava")
    try:
        raise OSError("the disk is full")
    except OSError:
        logging.getLogger("deployments.replica").exception("it did not start")
    (line,) = lines(file)
    assert line["process"] == "toy-llava" and "the disk is full" in line["exception"] and "request_id" not in line


def test_without_a_file_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(logs.FILE, raising=False)
    logs.configure("gateway", access=True)
    assert not [name for name in logs.OURS if logging.getLogger(name).handlers]
