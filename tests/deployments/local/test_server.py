"""The embedded models as `make serve` starts them, also after a part of the server was killed."""

import base64
import concurrent.futures
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import bad_input
import httpx
import psutil
import pytest
from running import Running, alive, command, until

pytestmark = [pytest.mark.ray, pytest.mark.engine]

SCENE = Path(__file__).parents[3] / "serve" / "toy" / "scenes" / "circles.png"
IMAGE = "data:image/png;base64," + base64.b64encode(SCENE.read_bytes()).decode()
TOYS = ["toy-llava", "toy-paligemma"]
BACK_S = 300.0  # a restart is 15 s of work; the machine may be busy


def ask(serving: Running, **fields: Any) -> httpx.Response:
    body = {"image": IMAGE, "question": "how many shapes are there?", "deadline_s": 60, **fields}
    return httpx.post(f"{serving.url}/v1/tasks/vqa", json=body, timeout=90)


def all_ready(serving: Running) -> bool:
    return until(lambda: serving.ready()["models"] == dict.fromkeys(TOYS, "ready"), BACK_S)


def test_start_prints_steps_then_url_and_a_command_to_try(serving: Running) -> None:
    printed = serving.output()
    for text in (
        "toy-llava: loading",
        "toy-paligemma: ready",
        f"Diptych is ready: {serving.url}",
        "drawn shapes only",
    ):
        assert text in printed
    try_it = re.search(r"^  (\S*diptych) (ask --server \S+ (\S+) .*)$", printed, re.MULTILINE)
    assert try_it and (Path.cwd() / try_it[3]).is_file()


def test_ask_prints_both_replies_and_the_merged_reply(serving: Running) -> None:
    line = [sys.executable, "-m", "serve.cli", "ask", "--server", serving.url, str(SCENE), "how many shapes are there?"]
    ran = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert all(name in ran.stdout for name in TOYS) and "merged" in ran.stdout


def test_both_models_count_the_shapes(serving: Running) -> None:
    answer = ask(serving).json()
    assert [(reply["model"], reply["status"]) for reply in answer["replies"]] == [(name, "ok") for name in TOYS]
    assert answer["merged"]["result"]["answer"] == "3"


def test_gateway_process_has_neither_torch_nor_vllm(serving: Running) -> None:
    maps = Path(f"/proc/{serving.replica('gateway')}/maps").read_text()
    assert "ray" in maps
    assert not re.search(r"/(torch|vllm|triton|transformers)/", maps)


def test_no_process_listens_beyond_this_machine(serving: Running) -> None:
    ours = serving.processes()
    outside = [
        connection.laddr
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
        and connection.pid in ours
        and connection.laddr.ip not in ("127.0.0.1", "::ffff:127.0.0.1")
    ]
    assert not outside


def test_bad_input_harms_no_engine(serving: Running) -> None:
    assert all_ready(serving)
    engines = [serving.engine(name) for name in TOYS]
    with httpx.Client(base_url=serving.url, timeout=60) as client:
        for case in bad_input.CASES:
            bad_input.ask(client, case)
            bad_input.control(client)
    assert engines == [serving.engine(name) for name in TOYS]


def test_engine_killed_during_a_fan_out_fails_its_own_replies_and_comes_back(serving: Running) -> None:
    assert all_ready(serving)
    engine = serving.engine("toy-paligemma")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        began = time.monotonic()
        answers = [pool.submit(ask, serving) for _ in range(24)]
        time.sleep(0.3)
        os.kill(engine, signal.SIGKILL)
        replies = [answer.result() for answer in answers]
        took = time.monotonic() - began
    assert took < 60
    hit = 0
    for reply in replies:
        assert reply.status_code == 200, reply.text
        llava, paligemma = reply.json()["replies"]
        assert llava["status"] == "ok"
        if paligemma["status"] != "ok":
            assert paligemma["status"] == "error" and paligemma["error"]["code"] in ("engine_dead", "model_starting")
            hit += 1
    assert hit
    assert until(lambda: serving.state("toy-paligemma") != "ready", 30)
    began = time.monotonic()
    while_away = ask(serving).json()
    assert time.monotonic() - began < 30
    assert [reply["status"] for reply in while_away["replies"]] == ["ok", "error"]
    assert while_away["replies"][1]["error"]["code"] == "model_starting"
    assert all_ready(serving)
    assert ask(serving).json()["replies"][1]["status"] == "ok"


def test_stalled_engine_is_killed_and_comes_back(serving: Running) -> None:
    assert all_ready(serving)
    engine = serving.engine("toy-llava")
    os.kill(engine, signal.SIGSTOP)
    began = time.monotonic()
    replies = ask(serving, deadline_s=50).json()["replies"]
    took = time.monotonic() - began
    assert [reply["status"] for reply in replies] == ["error", "ok"]
    assert replies[0]["error"]["code"] == "engine_dead" and took < 40  # 7 to 8 s where the machine is not busy
    assert until(lambda: not alive(engine), 15)
    assert until(lambda: serving.state("toy-llava") != "ready", 30)
    assert all_ready(serving)
    assert ask(serving).json()["replies"][0]["status"] == "ok"


def test_killed_replica_ends_its_engine_and_comes_back(serving: Running) -> None:
    assert all_ready(serving)
    replica, engine = serving.replica("toy-llava"), serving.engine("toy-llava")
    os.kill(replica, signal.SIGKILL)
    assert until(lambda: not alive(engine), 15), command(engine)
    assert until(lambda: serving.state("toy-llava") != "ready", 30)
    response = ask(serving)
    assert response.status_code == 200
    assert [reply["status"] for reply in response.json()["replies"]] == ["error", "ok"]
    assert all_ready(serving)
    assert serving.replica("toy-llava") != replica
    assert ask(serving).json()["replies"][0]["status"] == "ok"
