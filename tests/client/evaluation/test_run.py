"""`diptych run`: every image once, also after a kill."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from served import Server as Uvicorn
from served import listening, router, until
from served_folder import album, lines, serving, started
from uvicorn import Config

from serve.api.app import create_app
from serve.api.authentication import Access
from serve.api.keys import Keys
from serve.client.evaluation import batch
from serve.client.evaluation.asker import Asker
from serve.client.evaluation.lines import Record
from serve.client.http_client import Misuse, Server
from serve.engines.fake import FakeEngine


def test_every_image_has_a_line(diptych: Any, server: str, tmp_path: Path) -> None:
    names = album(tmp_path / "in", 9)
    (tmp_path / "in" / "notes.png").write_text("not a picture")
    (tmp_path / "in" / ".hidden.png").write_bytes((tmp_path / "in" / names[0]).read_bytes())
    out = tmp_path / "out.jsonl"
    ran = diptych("run", tmp_path / "in", "--out", out, "--server", server)
    assert (ran.status, ran.out) == (0, "")
    recorded = lines(out)
    assert sorted(line["file"] for line in recorded) == names
    for line in recorded:
        assert list(line) == ["file", "task", "asked", "image", "merged", "replies"]
        assert line["task"] == "caption" and line["merged"]["result"] == {"caption": "red"}
        assert [reply["model"] for reply in line["replies"]] == ["toy-llava", "toy-paligemma"]
        assert line["image"] == {"width": 32, "height": 24}


def test_without_out_lines_go_to_stdout(diptych: Any, server: str, tmp_path: Path) -> None:
    names = album(tmp_path, 3)
    ran = diptych("run", tmp_path, "--task", "vqa", "--question", "what?", "--server", server)
    assert ran.status == 0
    assert sorted(json.loads(line)["file"] for line in ran.out.splitlines()) == names


def test_options_of_the_request_reach_the_server(diptych: Any, tmp_path: Path) -> None:
    album(tmp_path, 1)
    with serving(FakeEngine("red"), FakeEngine("blue")) as url:
        for heavy, caption in (("toy-llava", "red"), ("toy-paligemma", "blue")):
            ran = diptych("run", tmp_path, "--server", url, "--weights", f"{heavy}=5", "--max-tokens", 4)
            assert json.loads(ran.out)["merged"]["result"] == {"caption": caption}


def test_refused_key_ends_the_run_before_any_line(diptych: Any, tmp_path: Path) -> None:
    album(tmp_path / "in", 9)
    out, access = tmp_path / "out.jsonl", Access(keys=Keys(["alice:4lice"]), ready="open")
    with listening(create_app(router(FakeEngine("red")), access=access)) as url:
        ran = diptych("run", tmp_path / "in", "--out", out, "--server", url, "--api-key", "revoked")
    assert ran.status != 0 and "API key" in ran.err
    assert lines(out) == []


@pytest.mark.parametrize("labels", ["red, or blue", "cat; old dog"])
def test_labels_are_split_by_the_client_only(diptych: Any, tmp_path: Path, labels: str) -> None:
    album(tmp_path, 1)
    engine = FakeEngine("<loc0256><loc0256><loc0767><loc0767> cat")
    with serving(FakeEngine("[0.25, 0.25, 0.75, 0.75]"), engine) as url:
        ran = diptych("run", tmp_path, "--task", "detect", "--labels", labels, "--server", url)
    assert json.loads(ran.out)["asked"] == {"labels": [part.strip() for part in labels.replace(",", ";").split(";")]}
    assert engine.prompts[0].text == "detect " + " ; ".join(json.loads(ran.out)["asked"]["labels"])


@pytest.mark.slow
def test_second_call_requests_missing_items_only(diptych: Any, tmp_path: Path) -> None:
    names, out, engine = album(tmp_path / "in", 6), tmp_path / "out.jsonl", FakeEngine("red")
    with serving(engine) as url:
        assert diptych("run", tmp_path / "in", "--out", out, "--server", url).status == 0
        whole = out.read_bytes().splitlines(keepends=True)
        error = json.dumps({"file": json.loads(whole[2])["file"], "task": "caption", "error": {"message": "x"}}) + "\n"
        out.write_bytes(b"".join(whole[:2]) + error.encode() + whole[3] + whole[4][:50])
        assert diptych("run", tmp_path / "in", "--out", out, "--server", url).status == 0
        assert len(engine.prompts) == 6 + 3  # the error, the half line, the one that was never written
        assert diptych("run", tmp_path / "in", "--out", out, "--server", url).status == 0
        assert len(engine.prompts) == 9
    assert sorted(line["file"] for line in lines(out)) == names
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_incomplete_line_is_requested_again(diptych: Any, server: str, tmp_path: Path) -> None:
    names, out = album(tmp_path / "in", 2), tmp_path / "out.jsonl"
    assert diptych("run", tmp_path / "in", "--out", out, "--server", server).status == 0
    for cut in (1, 2, 500):
        out.write_bytes(out.read_bytes()[:-cut])
        assert diptych("run", tmp_path / "in", "--out", out, "--server", server).status == 0
        assert sorted(line["file"] for line in lines(out)) == names


@pytest.mark.parametrize("text", ["dear diary\n", "dear diary", '{"a": 1}\n', '{"file": 3, "task": "vqa"}\n', "[]\n"])
def test_file_that_is_no_record_is_not_modified(diptych: Any, server: str, tmp_path: Path, text: str) -> None:
    album(tmp_path / "in", 1)
    out = tmp_path / "diary.txt"
    out.write_text(text)
    ran = diptych("run", tmp_path / "in", "--out", out, "--server", server)
    assert ran.status == 1 and "diary.txt, line 1: this is not a record of answers" in ran.err
    assert out.read_text() == text


def test_record_of_another_question_is_not_modified(diptych: Any, server: str, tmp_path: Path) -> None:
    album(tmp_path / "in", 1)
    out = tmp_path / "out.jsonl"
    diptych("run", tmp_path / "in", "--out", out, "--server", server)
    before = out.read_bytes()
    for arguments in (("--task", "vqa", "--question", "what?"), ("--models", "toy-llava")):
        ran = diptych("run", tmp_path / "in", "--out", out, "--server", server, *arguments)
        assert ran.status == 2 and "another question" in ran.err
    assert out.read_bytes() == before


@pytest.mark.slow
def test_killed_run_continues(tmp_path: Path) -> None:
    """Kill a process twice while a fake server answers slowly, then let it run to its end."""
    names, out = album(tmp_path / "in", 60), tmp_path / "out.jsonl"
    engine = FakeEngine("red", delay_s=0.05)
    with serving(engine) as url:
        arguments = ("run", tmp_path / "in", "--out", out, "--server", url, "--concurrency", 4)
        for least in (5, 25):
            process = started(*arguments)
            assert until(lambda enough=least: out.exists() and out.read_bytes().count(b"\n") >= enough, 30), least
            process.kill()
            process.communicate()
            assert least <= out.read_bytes().count(b"\n") < 60
        out.write_bytes(out.read_bytes()[:-7])  # as a power cut leaves it
        process = started(*arguments)
        stdout, stderr = process.communicate(timeout=60)
        assert (process.returncode, stdout) == (0, ""), stderr
    assert sorted(line["file"] for line in lines(out)) == names
    assert all(len(line["replies"]) == 2 for line in lines(out))


def test_record_in_use_is_refused(diptych: Any, server: str, tmp_path: Path) -> None:
    names, out = album(tmp_path / "in", 3), tmp_path / "out.jsonl"
    arguments = ("run", tmp_path / "in", "--out", out, "--server", server)
    with contextlib.closing(Record(out, "file", lambda _: None)):
        ran = diptych(*arguments)
        assert ran.status == 1 and f"{out} is being written by another diptych" in ran.err and out.read_bytes() == b""
    assert diptych(*arguments).status == 0
    assert sorted(line["file"] for line in lines(out)) == names


def test_record_in_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "out.jsonl")
    with pytest.raises(Misuse, match="is no file"):
        Record(tmp_path / "out.jsonl", "file", lambda _: None)


@pytest.mark.slow
def test_sigint_prints_how_to_continue_without_a_traceback(tmp_path: Path) -> None:
    album(tmp_path / "in", 40)
    out = tmp_path / "out.jsonl"
    engine = FakeEngine("red", delay_s=0.5)  # ten seconds in all: not over before it is told to stop
    with serving(engine) as url:
        process = started("run", tmp_path / "in", "--out", out, "--server", url, "--concurrency", 2)
        assert until(lambda: out.exists() and out.read_bytes().count(b"\n") > 2, 30)
        os.kill(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)
        assert process.returncode == 130 and stdout == "" and "Traceback" not in stderr
        assert f"What was answered is in {out}: the same call goes on from there." in stderr
        assert until(lambda: engine.speaking == 0, 5)
    assert all("replies" in line for line in lines(out))


def test_damaged_image_fails_its_own_line_only(diptych: Any, server: str, tmp_path: Path) -> None:
    names = album(tmp_path / "in", 3)
    (tmp_path / "in" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\x00" * 40)
    out = tmp_path / "out.jsonl"
    ran = diptych("run", tmp_path / "in", "--out", out, "--server", server)
    assert ran.status == 1 and "1 of 4 pictures have no answer" in ran.err
    recorded = {line["file"]: line for line in lines(out)}
    assert sorted(recorded) == sorted([*names, "bad.png"])
    assert recorded["bad.png"]["error"]["param"] == "image" and "replies" not in recorded["bad.png"]


def test_wrong_parameter_stops_the_run(diptych: Any, server: str, tmp_path: Path) -> None:
    album(tmp_path / "in", 20)
    out = tmp_path / "out.jsonl"
    ran = diptych("run", tmp_path / "in", "--out", out, "--server", server, "--models", "toy-lava")
    assert ran.status == 1 and "models: The model 'toy-lava' is not served here." in ran.err
    assert out.read_bytes() == b""
    ran = diptych("run", tmp_path / "in", "--task", "sing", "--server", server)
    assert ran.status == 1 and "There is no task 'sing'." in ran.err and ran.out == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--task", "detect"), "What to find?"),
        (("--task", "vqa"), "Which question?"),
        (("--labels", "cat"), "--labels are for detect"),
        (("extra",), "unrecognized arguments: extra"),
        (("--concurrency", "0"), "must be 1 or more"),
    ],
)
def test_wrong_arguments_are_refused(diptych: Any, tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    album(tmp_path, 1)
    ran = diptych("run", tmp_path, *arguments)
    assert ran.status == 2 and says in ran.err and ran.out == ""


def test_folder_without_images_is_refused(diptych: Any, tmp_path: Path) -> None:
    assert "holds no PNG, JPEG, WEBP or GIF" in diptych("run", tmp_path).err
    assert "no such folder" in diptych("run", tmp_path / "gone").err


def test_missing_server_is_reported(diptych: Any, tmp_path: Path) -> None:
    album(tmp_path, 1)
    with socket.create_server(("127.0.0.1", 0)) as held:
        nowhere = f"http://127.0.0.1:{held.getsockname()[1]}"
    ran = diptych("run", tmp_path, "--server", nowhere)
    assert ran.status == 1 and f"No Diptych answers at {nowhere}" in ran.err


@pytest.mark.slow
def test_run_ends_after_its_patience_when_the_server_stops(tmp_path: Path) -> None:
    names, out = album(tmp_path / "in", 30), tmp_path / "out.jsonl"
    with serving(FakeEngine("red", delay_s=0.1)) as url:
        arguments = ("run", tmp_path / "in", "--out", out, "--server", url, "--concurrency", 2, "--patience", 1.5)
        process = started(*arguments)
        assert until(lambda: out.exists() and out.read_bytes().count(b"\n") > 2, 30)
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and "Traceback" not in stderr
    assert f"diptych: {url} has not answered for" in stderr and "goes on from there" in stderr
    done = [line["file"] for line in lines(out)]
    assert 2 < len(done) < 30 and len(set(done)) == len(done) and set(done) < set(names)


class ScriptedServer:
    """An ASGI app that answers each request with the next of `replies`: (status, headers, body)."""

    def __init__(self, *replies: tuple[int, dict[str, str], dict[str, Any]]) -> None:
        self.replies = list(replies)
        self.requests = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        if scope["path"] == "/ready":
            status, headers, body = 200, {}, {"status": "ready", "models": {"toy-llava": "ready"}}
        else:
            self.requests += 1
            status, headers, body = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": pairs})
        await send({"type": "http.response.body", "body": json.dumps(body).encode()})


GOOD = {"object": "diptych.task", "image": {"width": 1, "height": 1}, "merged": {}}
GOOD |= {"replies": [{"model": "toy-llava", "status": "ok", "error": None}]}
BUSY = {"error": {"message": "Too many.", "type": "rate_limit_error", "param": None, "code": "overloaded"}}
NONE = {"error": {"message": "No model answered.", "type": "x", "param": None, "code": "no_model_answered"}}
STARTING: dict[str, Any] = GOOD | {
    "replies": [{"model": "toy-llava", "status": "error", "error": {"code": "model_starting", "message": "wait"}}]
}


def ask_once(app: ScriptedServer, patience_s: float = 5.0) -> tuple[dict[str, Any], list[float]]:
    """Return the answer to a request, and the seconds of each wait between its tries."""
    answers: list[dict[str, Any]] = []

    async def once(asker: Asker) -> None:
        asker.patience_s = patience_s
        answers.append(await asker.ask("caption", b"x", {}))

    naps = with_asker(app, once)
    return answers[0], naps


def with_asker(app: ScriptedServer, act: Callable[[Asker], Coroutine[Any, Any, None]]) -> list[float]:
    """Call `act` with a client of this server, without real waits; return the seconds of each wait."""
    naps: list[float] = []
    real = asyncio.sleep

    async def nap(seconds: float) -> None:
        here = threading.current_thread() is threading.main_thread()  # the server has a thread of its own
        naps.extend([seconds] * here)
        await real(0 if here else seconds)

    async def go(url: str) -> None:
        with Server(url) as server:
            async with Asker(server) as asker:
                await act(asker)

    serving_it = Uvicorn(Config(app, port=0, log_level="critical", lifespan="off")).running()
    with serving_it as url, pytest.MonkeyPatch.context() as patched:
        patched.setattr("serve.client.evaluation.asker.asyncio.sleep", nap)
        asyncio.run(go(url))
    return naps


def test_retry_waits_for_the_seconds_of_retry_after() -> None:
    answer, naps = ask_once(
        ScriptedServer((429, {"retry-after": "7"}, BUSY), (503, {"retry-after": "3"}, BUSY), (200, {}, GOOD))
    )
    assert answer["replies"] and naps == [7.0, 3.0]


def test_retry_without_retry_after_backs_off() -> None:
    app = ScriptedServer((503, {}, BUSY), (502, {"retry-after": "soon"}, {}), (503, {}, BUSY), (200, {}, GOOD))
    answer, naps = ask_once(app)
    assert answer["replies"] and 0.25 <= naps[0] <= 0.5 <= naps[1] <= 1.0 <= naps[2] <= 2.0


def test_busy_answer_is_final_after_the_patience() -> None:
    answer, _ = ask_once(ScriptedServer((429, {}, BUSY)), patience_s=0.0)
    assert answer == {"error": BUSY["error"]}


def test_parse_error_is_not_retried() -> None:
    app = ScriptedServer((503, {"retry-after": "2"}, NONE | {"error": NONE["error"] | {"code": "parse_error"}}))
    answer, naps = ask_once(app)
    assert answer["error"]["code"] == "parse_error" and not naps


def test_no_model_answered_is_retried() -> None:
    """Answer as a cluster that has lost its replicas for a moment."""
    answer, naps = ask_once(
        ScriptedServer((503, {"retry-after": "2"}, NONE), (503, {"retry-after": "2"}, NONE), (200, {}, GOOD))
    )
    assert answer["replies"] and naps == [2.0, 2.0]


def test_engine_error_is_tried_three_times() -> None:
    app = ScriptedServer(
        (200, {}, STARTING | {"replies": [{"model": "a", "status": "error", "error": {"code": "engine_error"}}]})
    )
    answer, naps = ask_once(app)
    assert answer["replies"][0]["error"]["code"] == "engine_error" and len(naps) == 2 and app.requests == 3


def test_internal_error_is_tried_twice() -> None:
    app = ScriptedServer((500, {}, {"error": {"message": "The server failed.", "code": "internal_error"}}))
    answer, _ = ask_once(app)
    assert answer["error"]["code"] == "internal_error" and app.requests == 2


def test_restarting_model_is_waited_for() -> None:
    app = ScriptedServer((200, {}, STARTING), (200, {}, STARTING), (200, {}, GOOD))
    answer, naps = ask_once(app)
    assert answer["replies"][0]["status"] == "ok" and len(naps) == 2
    answer, _ = ask_once(ScriptedServer((200, {}, STARTING)), patience_s=0.0)
    assert answer["replies"][0]["error"]["code"] == "model_starting"  # after the patience


def test_missing_model_is_waited_for_once() -> None:
    """Wait in vain once: the next line is written without the model, until it is back."""
    app = ScriptedServer((200, {}, STARTING), (200, {}, GOOD), (200, {}, STARTING), (200, {}, GOOD))

    async def twice(asker: Asker) -> None:
        asker.patience_s = 0.0
        assert (await asker.ask("caption", b"x", {}))["replies"][0]["status"] == "error"
        asker.patience_s = 60.0
        app.replies.insert(0, (200, {}, STARTING))
        assert (await asker.ask("caption", b"x", {}))["replies"][0]["status"] == "error"
        assert app.requests == 2
        assert (await asker.ask("caption", b"x", {}))["replies"][0]["status"] == "ok"
        assert (await asker.ask("caption", b"x", {}))["replies"][0]["status"] == "ok"
        assert app.requests == 5  # back, then away again: waited for

    with_asker(app, twice)


@pytest.mark.slow
def test_concurrency_is_bounded(tmp_path: Path, diptych: Any) -> None:
    album(tmp_path / "in", 24)
    engine, most = FakeEngine("red", delay_s=0.01), 0
    with serving(engine) as url:
        over = threading.Event()

        def watch() -> None:
            nonlocal most
            while not over.wait(0.001):
                most = max(most, engine.speaking)

        watching = threading.Thread(target=watch)
        watching.start()
        ran = diptych("run", tmp_path / "in", "--server", url, "--concurrency", 5)
        over.set()
        watching.join()
    assert ran.status == 0 and 2 <= most <= 5


def test_failures_of_a_model_are_summarized(diptych: Any, tmp_path: Path) -> None:
    album(tmp_path, 4)
    with serving(FakeEngine("red", fail_after=0)) as url:
        ran = diptych("run", tmp_path, "--server", url)
    assert ran.status == 0 and "toy-llava did not answer every time: 4 x model_error." in ran.err


def test_tally_counts_failures_by_model() -> None:
    tally = batch.Tally()
    tally.add({"error": {}})
    tally.add({"replies": [{"model": "a", "status": "timeout", "error": None}, {"model": "b", "status": "ok"}]})
    assert (tally.answered, tally.failed, tally.columns) == (1, 1, {"a": {"timeout": 1}})
