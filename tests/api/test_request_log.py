"""The request log: a line for each POST request, contents apart, no secrets; it is rotated, and blocks nothing."""

import hashlib
import json
import resource
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from served import LLAVA, PALIGEMMA, URL, calling, message, picture, router

from serve.accounting import Contents
from serve.api import request_log
from serve.api.app import create_app
from serve.api.authentication import Access
from serve.api.chat_completions.response import Chunks
from serve.api.keys import Keys
from serve.api.metrics import Metrics
from serve.api.request_log import RequestLog, RequestLogArgs
from serve.engines.fake import FakeEngine
from serve.errors import TooLarge
from serve.models import MODELS
from serve.worker import Worker

CALLING = "qwen3-vl-2b"
KEY = "a-key-that-is-in-no-log"
HEADERS = {"authorization": f"Bearer {KEY}", "x-request-id": "mine-7"}
VQA: dict[str, Any] = {"image": URL, "question": "what hides here?"}
CHAT = {"model": LLAVA, "messages": [message("what hides here?")]}
INPUT = [{"role": "user", "content": [{"type": "input_image", "image_url": URL}]}]


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


async def logged(file: Path, *requests: tuple[str, dict[str, Any]], contents: bool = False) -> list[dict[str, Any]]:
    """Send requests to an app with a log; return its lines."""
    log = RequestLog(RequestLogArgs(file=file, contents=contents))
    app = create_app(
        router(FakeEngine("a red thing"), FakeEngine("red", fail_after=0)),
        access=Access(keys=Keys([f"alice:{KEY}"])),
        request_log=log,
    )
    async with calling(app) as client:
        await client.get("/v1/models", headers=HEADERS)
        for path, body in requests:
            await client.post(path, json=body, headers=HEADERS)
    log.close()
    return lines(file)


async def test_line_has_key_models_and_use_of_its_request(tmp_path: Path) -> None:
    fan_out, wrong = await logged(
        tmp_path / "log", ("/v1/tasks/vqa", VQA), ("/v1/chat/completions", CHAT | {"model": "gpt-5"})
    )
    assert (fan_out["key"], fan_out["request_id"], fan_out["method"]) == ("alice", "mine-7", "POST")
    assert (fan_out["route"], fan_out["status"], fan_out["task"]) == ("/v1/tasks/vqa", 200, "vqa")
    assert fan_out["models"] == {LLAVA: 1, PALIGEMMA: 1} and fan_out["pictures"] == 1 and fan_out["output_tokens"] == 3
    assert fan_out["error"] is None and fan_out["time"].endswith("+00:00") and fan_out["ms"] > 0
    assert (wrong["status"], wrong["error"], wrong["models"]) == (404, "model_not_found", {})
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o600


def test_disk_that_is_full_leaves_no_part_of_a_line(tmp_path: Path) -> None:
    log = RequestLog(RequestLogArgs(file=tmp_path / "log"))
    (tmp_path / "log").write_text("x" * 99 + "\n")
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150, unlimited[1]))
    try:
        log.write({"text": "y" * 99})
        log.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert (tmp_path / "log").read_text() == "x" * 99 + "\n" and log.dropped() == 1


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/chat/completions", CHAT | {"model": "vqa"}),
        ("/v1/responses", {"model": LLAVA, "input": INPUT}),
        ("/v1/tasks/vqa", VQA),
    ],
)
async def test_stream_that_ends_well_has_no_error(path: str, body: dict[str, Any], tmp_path: Path) -> None:
    (line,) = await logged(tmp_path / "log", (path, body | {"stream": True}))
    assert (line["status"], line["error"]) == (200, None)


@pytest.mark.parametrize(("failure", "code"), [(RuntimeError("a bug"), "internal_error"), (TooLarge("a"), "too_large")])
async def test_stream_that_fails_after_its_first_event_has_the_error(
    failure: Exception, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bytes:
        raise failure

    monkeypatch.setattr(Chunks, "finish", fail)
    (line,) = await logged(tmp_path / "log", ("/v1/chat/completions", CHAT | {"stream": True}))
    assert (line["status"], line["error"]) == (200, code)


async def test_contents_are_in_the_log_only_where_the_switch_is_on(tmp_path: Path) -> None:
    requests = ("/v1/tasks/vqa", VQA), ("/v1/chat/completions", CHAT), ("/v1/tasks/vqa", VQA | {"stream": True})
    await logged(tmp_path / "without", *requests)
    text = (tmp_path / "without").read_text()
    assert not [word for word in ("hides", "thing", "blake2b", "base64") if word in text]
    for line in await logged(tmp_path / "with", *requests, contents=True):
        assert line["texts"] == ["what hides here?"] and not line["cut"]
        assert {"model": LLAVA, "text": "a red thing"} in line["replies"]
        assert line["pictures_blake2b"] == [hashlib.blake2b(picture(), digest_size=20).hexdigest()]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
async def test_calls_of_functions_are_in_the_contents(path: str, stream: bool, tmp_path: Path) -> None:
    log = RequestLog(RequestLogArgs(file=tmp_path / "log", contents=True))
    held = '[{"name": "clock", "parameters": {"zone": "Oslo"}}]'
    tools_router, engine = (
        router(),
        FakeEngine(lambda prompt: held if "array" in prompt.sampling.json_schema else '{"place": "Rome"}'),
    )
    tools_router.routes[CALLING] = worker = Worker(MODELS[CALLING], engine)
    worker.mark("ready", "ready")
    functions = {"name": "weather"}, {"name": "clock"}
    if path == "/v1/responses":
        body: dict[str, Any] = {"input": "what?", "tools": [{"type": "function", **each} for each in functions]}
        named: dict[str, Any] = {"type": "function", "name": "weather"}
    else:
        body = {"messages": [message()], "tools": [{"type": "function", "function": each} for each in functions]}
        named = {"type": "function", "function": {"name": "weather"}}
    limit = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    async with calling(create_app(tools_router, request_log=log)) as client:
        for more in ({"tool_choice": named}, {"tool_choice": "required"}, {"tool_choice": "required", limit: 3}):
            reply = await client.post(path, json=body | {"model": CALLING, "stream": stream} | more)
            assert reply.status_code == 200, reply.text
    log.close()
    weather = {"name": "weather", "arguments": '{"place": "Rome"}'}
    clock = {"name": "clock", "arguments": '{"zone": "Oslo"}'}
    assert [line["replies"] for line in lines(tmp_path / "log")] == [
        [{"model": CALLING, "text": "", "tool_calls": [weather]}],
        [{"model": CALLING, "text": "", "tool_calls": [clock]}],
        [{"model": CALLING, "text": '[{"name": "clock", "parameters": '}],  # a list that was cut has no calls
    ]


async def test_no_secret_is_in_the_log(tmp_path: Path) -> None:
    signed = "https://pictures.example/a.png?signature=s3cret"
    await logged(
        tmp_path / "log",
        ("/v1/tasks/vqa", VQA | {"image": signed, "deadline_s": 0.1}),
        ("/v1/chat/completions", CHAT | {"messages": [message("what?", signed)], "deadline_s": 0.1}),
        ("/v1/tasks/vqa?api_key=s3cret", VQA),
        contents=True,
    )
    text = (tmp_path / "log").read_text()
    assert text.count("\n") == 3 and not [word for word in ("s3cret", KEY, "base64") if word in text]


def test_contents_are_cut_at_their_limit() -> None:
    contents = Contents()
    contents.add_texts(["x" * 30_000] * 2)
    assert not contents.cut
    contents.add_reply(LLAVA, "y" * 30_000)
    contents.add_texts(["z"] * 1000)
    contents.add_reply(LLAVA, "", [("weather", "{}")] * 1000)
    record = contents.record()
    assert len(record["replies"][1]["tool_calls"]) == 256 and record["replies"][1]["tool_calls"][0]["arguments"] == ""
    assert record["cut"] and len(record["texts"]) == 256
    assert sum(map(len, record["texts"])) + len(record["replies"][0]["text"]) == 64 * 1024


def test_full_log_is_rotated_and_old_files_are_removed(tmp_path: Path) -> None:
    log = RequestLog(RequestLogArgs(file=tmp_path / "log", max_mb=100 / 2**20, files=3))
    for number in range(20):
        log._append([json.dumps({"number": number, "more": "x" * 30}).encode() + b"\n"])
    log.close()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["log.1", "log.2"] and all(path.stat().st_size < 200 for path in tmp_path.iterdir())
    assert [line["number"] for name in ("log.2", "log.1") for line in lines(tmp_path / name)] == [16, 17, 18, 19]


def test_lines_that_the_disk_cannot_take_in_time_are_dropped_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_log, "MAX_WAITING", 1000)
    log, metrics = RequestLog(RequestLogArgs(file=tmp_path / "log")), Metrics()
    metrics.watch(request_log=log)
    held, free = threading.Event(), threading.Event()
    append = log._append

    def slow(batch: list[bytes]) -> None:
        held.set()
        free.wait()
        append(batch)

    monkeypatch.setattr(log, "_append", slow)
    log.write({"number": 0})
    assert held.wait(5)
    for number in range(1, 101):
        log.write({"number": number})
    free.set()
    log.close()
    metrics.update([])
    written = [line["number"] for line in lines(tmp_path / "log")]
    dropped = metrics.registry.get_sample_value("diptych_request_log_lines_dropped_total")
    assert written == list(range(len(written))) and 50 < len(written) < 90 and dropped == 101 - len(written)


def test_file_that_cannot_be_written_is_refused_at_the_start_and_counted_later(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        RequestLog(RequestLogArgs(file=tmp_path / "nowhere" / "log"))
    (tmp_path / "folder").mkdir()
    log = RequestLog(RequestLogArgs(file=tmp_path / "folder" / "log"))
    (tmp_path / "folder" / "log").unlink()
    (tmp_path / "folder").rmdir()
    log.write({"number": 0})
    log.close()
    assert log.dropped() == 1 and log.dropped() == 0


def test_gateways_that_share_a_file_lose_no_line_when_a_new_file_begins(tmp_path: Path) -> None:
    args = RequestLogArgs(file=tmp_path / "log", max_mb=300 / 2**20, files=100)
    logs = [RequestLog(args) for _ in range(3)]

    def write(log: RequestLog, start: int) -> None:
        for number in range(start, start + 30):
            log._append([json.dumps({"number": number}).encode() + b"\n"])

    threads = [threading.Thread(target=write, args=(log, 100 * at)) for at, log in enumerate(logs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for log in logs:
        log.close()
    numbers = [line["number"] for path in tmp_path.iterdir() for line in lines(path)]
    assert sorted(numbers) == [100 * at + number for at in range(3) for number in range(30)]
    assert len(list(tmp_path.iterdir())) > 2
