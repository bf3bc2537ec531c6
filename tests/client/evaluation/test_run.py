"""`diptych run`: every picture once, also after a kill."""

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
from served import until
from served_folder import album, lines, serving, started
from uvicorn import Config

from serve.client.evaluation import batch
from serve.client.evaluation.asker import Asker
from serve.client.evaluation.lines import Record
from serve.client.http_client import Server
from serve.engines.fake import FakeEngine


def test_every_picture_has_a_line(diptych: Any, server: str, tmp_path: Path) -> None:
    names = album(tmp_path / "in", 9)
    (tmp_path / "in" / "notes.png").write_text("not a picture")
    (tmp_path / "in" / ".hidden.png").write_bytes((tmp_path / "in" / names[0]).read_bytes())
    out = tmp_path / "out.jsonl"
    ran = diptych("run", tmp_path / "in", "--out", out, "--server", server)
    assert (ran.status, ran.out) == (0, "")
    found = lines(out)
    assert sorted(line["file"] for line in found) == names
    for line in found:
        assert list(line) == ["file", "task", "asked", "image", "merged", "replies"]
        assert line["task"] == "caption" and line["merged"]["result"] == {"caption": "red"}
        assert [reply["model"] for reply in line["replies"]] == ["toy-llava", "toy-paligemma"]
        assert line["image"] == {"width": 32, "height": 24}


def test_without_out_lines_go_to_stdout(diptych: Any, server: str, tmp_path: Path) -> None:
    names = album(tmp_path, 3)
    ran = diptych("run", tmp_path, "--task", "vqa", "--question", "what?", "--server", server)
    assert ran.status == 0
    assert sorted(json.loads(line)["file"] for line in ran.out.splitlines()) == names


def test_the_request_s_options_reach_the_server(diptych: Any, tmp_path: Path) -> None:
    album(tmp_path, 1)
    with serving(FakeEngine("red"), FakeEngine("blue")) as url:
        for heavy, words in (("toy-llava", "red"), ("toy-paligemma", "blue")):
            ran = diptych("run", tmp_path, "--server", url, "--weights", f"{heavy}=5", "--max-tokens", 4)
            assert json.loads(ran.out)["merged"]["result"] == {"caption": words}


@pytest.mark.parametrize("labels", ["red, or blue", "cat; old dog"])
def test_phrases_arrive_as_they_were_split(diptych: Any, tmp_path: Path, labels: str) -> None:
    album(tmp_path, 1)
    engine = FakeEngine("<loc0256><loc0256><loc0767><loc0767> cat")
    with serving(FakeEngine("[0.25, 0.25, 0.75, 0.75]"), engine) as url:
        ran = diptych("run", tmp_path, "--task", "detect", "--labels", labels, "--server", url)
    assert json.loads(ran.out)["asked"] == {"labels": [part.strip() for part in labels.replace(",", ";").split(";")]}
    assert engine.prompts[0].text == "detect " + " ; ".join(json.loads(ran.out)["asked"]["labels"])


def test_a_second_call_asks_only_what_is_missing(diptych: Any, tmp_path: Path) -> None:
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


def test_a_line_cut_before_its_newline_is_asked_again(diptych: Any, server: str, tmp_path: Path) -> None:
    names, out = album(tmp_path / "in", 2), tmp_path / "out.jsonl"
    assert diptych("run", tmp_path / "in", "--out", out, "--server", server).status == 0
    for cut in (1, 2, 500):
        out.write_bytes(out.read_bytes()[:-cut])
        assert diptych("run", tmp_path / "in", "--out", out, "--server", server).status == 0
        assert sorted(line["file"] for line in lines(out)) == names


@pytest.mark.parametrize("text", ["dear diary\n", "dear diary", '{"a": 1}\n', '{"file": 3, "task": "vqa"}\n', "[]\n"])
def test_a_file_that_is_no_record_is_left_alone(diptych: Any, server: str, tmp_path: Path, text: str) -> None:
    album(tmp_path / "in", 1)
    out = tmp_path / "diary.txt"
    out.write_text(text)
    ran = diptych("run", tmp_path / "in", "--out", out, "--server", server)
    assert ran.status == 1 and "diary.txt, line 1: this is not a record of answers" in ran.err
    assert out.read_text() == text


def test_a_record_of_another_question_is_left_alone(diptych: Any, server: str, tmp_path: Path) -> None:
    album(tmp_path / "in", 1)
    out = tmp_path / "out.jsonl"
    diptych("run", tmp_path / "in", "--out", out, "--server", server)
    before = out.read_bytes()
    for words in (("--task", "vqa", "--question", "what?"), ("--models", "toy-llava")):
        ran = diptych("run", tmp_path / "in", "--out", out, "--server", server, *words)
        assert ran.status == 2 and "another question" in ran.err
    assert out.read_bytes() == before


@pytest.mark.slow
def test_killed_and_started_again(tmp_path: Path) -> None:
    """A real process, killed without warning twice while a fake server answers slowly; then run to its end."""
    names, out = album(tmp_path / "in", 60), tmp_path / "out.jsonl"
    engine = FakeEngine("red", delay_s=0.05)
    with serving(engine) as url:
        words = ("run", tmp_path / "in", "--out", out, "--server", url, "--concurrency", 4)
        for least in (5, 25):
            process = started(*words)
            assert until(lambda enough=least: out.exists() and out.read_bytes().count(b"\n") >= enough, 30), least
            process.kill()
            process.communicate()
            assert least <= out.read_bytes().count(b"\n") < 60
        out.write_bytes(out.read_bytes()[:-7])  # as a power cut leaves it
        process = started(*words)
        said, complained = process.communicate(timeout=60)
        assert (process.returncode, said) == (0, ""), complained
    assert sorted(line["file"] for line in lines(out)) == names
    assert all(len(line["replies"]) == 2 for line in lines(out))


def test_two_at_once_do_not_mix(diptych: Any, server: str, tmp_path: Path) -> None:
    names, out = album(tmp_path / "in", 3), tmp_path / "out.jsonl"
    words = ("run", tmp_path / "in", "--out", out, "--server", server)
    with contextlib.closing(Record(out, "file", lambda _: None)):
        ran = diptych(*words)
        assert ran.status == 1 and f"{out} is being written by another diptych" in ran.err and out.read_bytes() == b""
    assert diptych(*words).status == 0
    assert sorted(line["file"] for line in lines(out)) == names


@pytest.mark.slow
def test_ctrl_c_is_quiet_and_says_how_to_go_on(tmp_path: Path) -> None:
    album(tmp_path / "in", 40)
    out = tmp_path / "out.jsonl"
    engine = FakeEngine("red", delay_s=0.5)  # ten seconds in all: not over before it is told to stop
    with serving(engine) as url:
        process = started("run", tmp_path / "in", "--out", out, "--server", url, "--concurrency", 2)
        assert until(lambda: out.exists() and out.read_bytes().count(b"\n") > 2, 30)
        os.kill(process.pid, signal.SIGINT)
        said, complained = process.communicate(timeout=30)
        assert process.returncode == 130 and said == "" and "Traceback" not in complained
        assert f"What was answered is in {out}: the same call goes on from there." in complained
        assert until(lambda: engine.speaking == 0, 5)
    assert all("replies" in line for line in lines(out))


def test_a_damaged_picture_costs_its_own_line(diptych: Any, server: str, tmp_path: Path) -> None:
    names = album(tmp_path / "in", 3)
    (tmp_path / "in" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\x00" * 40)
    out = tmp_path / "out.jsonl"
    ran = diptych("run", tmp_path / "in", "--out", out, "--server", server)
    assert ran.status == 1 and "1 of 4 pictures have no answer" in ran.err
    found = {line["file"]: line for line in lines(out)}
    assert sorted(found) == sorted([*names, "bad.png"])
    assert found["bad.png"]["error"]["param"] == "image" and "replies" not in found["bad.png"]


def test_a_wrong_parameter_stops_before_every_line_says_so(diptych: Any, server: str, tmp_path: Path) -> None:
    album(tmp_path / "in", 20)
    out = tmp_path / "out.jsonl"
    ran = diptych("run", tmp_path / "in", "--out", out, "--server", server, "--models", "toy-lava")
    assert ran.status == 1 and "models: The model 'toy-lava' is not served here." in ran.err
    assert out.read_bytes() == b""
    ran = diptych("run", tmp_path / "in", "--task", "sing", "--server", server)
    assert ran.status == 1 and "There is no task 'sing'." in ran.err and ran.out == ""


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--task", "detect"), "What to find?"),
        (("--task", "vqa"), "Which question?"),
        (("--labels", "cat"), "--labels are for detect and segment, not for caption."),
        (("extra",), "unrecognized arguments: extra"),
        (("--concurrency", "0"), "must be 1 or more"),
    ],
)
def test_misuse(diptych: Any, tmp_path: Path, words: tuple[str, ...], says: str) -> None:
    album(tmp_path, 1)
    ran = diptych("run", tmp_path, *words)
    assert ran.status == 2 and says in ran.err and ran.out == ""


def test_a_folder_without_pictures(diptych: Any, tmp_path: Path) -> None:
    assert "holds no PNG, JPEG, WEBP or GIF" in diptych("run", tmp_path).err
    assert "no such folder" in diptych("run", tmp_path / "gone").err


def test_no_server(diptych: Any, tmp_path: Path) -> None:
    album(tmp_path, 1)
    with socket.create_server(("127.0.0.1", 0)) as held:
        nowhere = f"http://127.0.0.1:{held.getsockname()[1]}"
    ran = diptych("run", tmp_path, "--server", nowhere)
    assert ran.status == 1 and f"No Diptych answers at {nowhere}" in ran.err


@pytest.mark.slow
def test_a_server_that_goes_is_waited_for_and_then_given_up(tmp_path: Path) -> None:
    names, out = album(tmp_path / "in", 30), tmp_path / "out.jsonl"
    with serving(FakeEngine("red", delay_s=0.1)) as url:
        words = ("run", tmp_path / "in", "--out", out, "--server", url, "--concurrency", 2, "--patience", 1.5)
        process = started(*words)
        assert until(lambda: out.exists() and out.read_bytes().count(b"\n") > 2, 30)
    complained = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and "Traceback" not in complained
    assert f"diptych: {url} has not answered for" in complained and "goes on from there" in complained
    done = [line["file"] for line in lines(out)]
    assert 2 < len(done) < 30 and len(set(done)) == len(done) and set(done) < set(names)


class Rude:
    """A server that answers each request with the next of `replies`: (status, headers, body)."""

    def __init__(self, *replies: tuple[int, dict[str, str], dict[str, Any]]) -> None:
        self.replies = list(replies)
        self.asked = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        if scope["path"] == "/ready":
            status, headers, body = 200, {}, {"status": "ready", "models": {"toy-llava": "ready"}}
        else:
            self.asked += 1
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


def asked(app: Rude, patience_s: float = 5.0) -> tuple[dict[str, Any], list[float]]:
    """One question's answer, and how long it slept in between."""
    said: list[dict[str, Any]] = []

    async def once(asker: Asker) -> None:
        asker.patience_s = patience_s
        said.append(await asker.ask("caption", b"x", {}))

    naps = with_asker(app, once)
    return said[0], naps


def with_asker(app: Rude, act: Callable[[Asker], Coroutine[Any, Any, None]]) -> list[float]:
    """Do something with a client of this server; returns how long it would have slept."""
    naps: list[float] = []
    real = asyncio.sleep

    async def nap(seconds: float) -> None:
        here = threading.current_thread() is threading.main_thread()  # the server sleeps in its own
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


def test_a_busy_server_is_asked_again_when_it_says() -> None:
    said, naps = asked(Rude((429, {"retry-after": "7"}, BUSY), (503, {"retry-after": "3"}, BUSY), (200, {}, GOOD)))
    assert said["replies"] and naps == [7.0, 3.0]


def test_a_busy_server_that_does_not_say_is_left_alone_longer_each_time() -> None:
    app = Rude((503, {}, BUSY), (502, {"retry-after": "soon"}, {}), (503, {}, BUSY), (200, {}, GOOD))
    said, naps = asked(app)
    assert said["replies"] and 0.25 <= naps[0] <= 0.5 <= naps[1] <= 1.0 <= naps[2] <= 2.0


def test_patience_ends() -> None:
    said, _ = asked(Rude((429, {}, BUSY)), patience_s=0.0)
    assert said == {"error": BUSY["error"]}


def test_words_that_no_model_got_right_are_final() -> None:
    app = Rude((503, {"retry-after": "2"}, NONE | {"error": NONE["error"] | {"code": "parse_error"}}))
    said, naps = asked(app)
    assert said["error"]["code"] == "parse_error" and not naps


def test_where_no_model_answered_it_is_asked_again() -> None:
    """A cluster that loses its replicas for a moment says so of every model."""
    said, naps = asked(Rude((503, {"retry-after": "2"}, NONE), (503, {"retry-after": "2"}, NONE), (200, {}, GOOD)))
    assert said["replies"] and naps == [2.0, 2.0]


def test_an_engine_that_stumbles_is_asked_three_times() -> None:
    app = Rude(
        (200, {}, STARTING | {"replies": [{"model": "a", "status": "error", "error": {"code": "engine_error"}}]})
    )
    said, naps = asked(app)
    assert said["replies"][0]["error"]["code"] == "engine_error" and len(naps) == 2 and app.asked == 3


def test_a_bug_in_the_server_is_asked_about_twice() -> None:
    app = Rude((500, {}, {"error": {"message": "The server failed.", "code": "internal_error"}}))
    said, _ = asked(app)
    assert said["error"]["code"] == "internal_error" and app.asked == 2


def test_a_model_that_is_being_started_again_is_waited_for() -> None:
    app = Rude((200, {}, STARTING), (200, {}, STARTING), (200, {}, GOOD))
    said, naps = asked(app)
    assert said["replies"][0]["status"] == "ok" and len(naps) == 2
    said, _ = asked(Rude((200, {}, STARTING)), patience_s=0.0)
    assert said["replies"][0]["error"]["code"] == "model_starting"  # in the end its column says so


def test_a_model_that_stays_away_is_not_waited_for_again() -> None:
    """Once in vain is enough: the next picture's line is written without it, until it is back."""
    app = Rude((200, {}, STARTING), (200, {}, GOOD), (200, {}, STARTING), (200, {}, GOOD))

    async def twice(asker: Asker) -> None:
        asker.patience_s = 0.0
        assert (await asker.ask("caption", b"x", {}))["replies"][0]["status"] == "error"
        asker.patience_s = 60.0
        app.replies.insert(0, (200, {}, STARTING))
        assert (await asker.ask("caption", b"x", {}))["replies"][0]["status"] == "error"
        assert app.asked == 2
        assert (await asker.ask("caption", b"x", {}))["replies"][0]["status"] == "ok"
        assert (await asker.ask("caption", b"x", {}))["replies"][0]["status"] == "ok"
        assert app.asked == 5  # back, then away again: waited for

    with_asker(app, twice)


def test_no_more_under_way_than_allowed(tmp_path: Path, diptych: Any) -> None:
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


def test_what_models_failed_at_is_said(diptych: Any, tmp_path: Path) -> None:
    album(tmp_path, 4)
    with serving(FakeEngine("red", fail_after=0)) as url:
        ran = diptych("run", tmp_path, "--server", url)
    assert ran.status == 0 and "toy-llava did not answer every time: 4 x model_error." in ran.err


def test_the_tally_counts_columns() -> None:
    tally = batch.Tally()
    tally.add({"error": {}})
    tally.add({"replies": [{"model": "a", "status": "timeout", "error": None}, {"model": "b", "status": "ok"}]})
    assert (tally.answered, tally.failed, tally.columns) == (1, 1, {"a": {"timeout": 1}})
