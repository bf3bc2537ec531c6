"""A real Ray with simulated engines, which start in no time; all else is as in production."""

import concurrent.futures
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from adapter_files import write_adapter
from running import Running, alive, free_port, until
from served import URL, frames

pytestmark = pytest.mark.ray


PAIR = ("left", "right")
TURNS = {"group": "pair", "simulate": {"replies": "word", "wake_s": 0.2}}


def config(folder: Path, models: list[dict[str, Any]], groups: dict[str, Any] | None = None, **gateway: Any) -> str:
    file = folder / "config.yaml"
    arguments = {"models": models, "groups": groups or {}, "gateway": gateway}
    application = {"name": "diptych", "import_path": "deployments.app:build", "args": arguments}
    file.write_text(yaml.dump({"applications": [application]}))
    return str(file)


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    models = [
        {
            "name": "toy-llava",
            "simulate": {"replies": "word " * 600, "delay_s": 0.05, "adapters": {"mine": "blue", "loaded": "green"}},
            "max_loras": 1,
        },
        {"name": "mine", "base": "toy-llava", "adapter": "/models/mine", "tasks": ["caption"]},
        {"name": "toy-paligemma", "simulate": {"fail_start": "Too little memory: 9.0 GiB wanted, 1.0 GiB free."}},
        {
            "name": "toy-paligemma-b",
            "simulate": {"replies": "word " * 100, "delay_s": 0.05},
            "autoscaling": {"min_replicas": 0, "max_replicas": 2, "target_ongoing_requests": 2, "upscale_delay_s": 0},
        },
        *({"name": name, "like": "toy-llava", "checkpoint": ".", "tasks": ["vqa"], **TURNS} for name in PAIR),
    ]
    groups = {"pair": {"awake": 1, "min_awake_s": 0}}
    folder = tmp_path_factory.mktemp("rehearsal")
    write_adapter(folder / "adapters" / "loaded")
    adapters = {"folder": str(folder / "adapters"), "file": str(folder / "adapters.json")}
    file = config(folder, models, groups, replicas=2, adapters=adapters)
    running = Running("--config", file)
    try:
        yield running.wait_for("Diptych is ready")
    finally:
        code = running.interrupt(signal.SIGTERM)
    assert code == 0 and not running.leftovers()


def test_model_that_cannot_start_reports_why_and_others_serve_on(rehearsal: Running) -> None:
    assert "toy-paligemma: FAILED: Too little memory: 9.0 GiB wanted, 1.0 GiB free." in rehearsal.output()
    assert "Traceback" not in rehearsal.output()
    ready = rehearsal.ready()
    states = {"toy-llava": "ready", "toy-paligemma": "failed", "toy-paligemma-b": "asleep", "mine": "ready"}
    assert ready["status"] == "degraded" and {name: ready["models"][name] for name in states} == states
    assert ready["details"]["toy-paligemma-b"]["step"] == "it starts when it is asked"


def test_adapter_answers_from_its_bases_process(rehearsal: Running) -> None:
    body = {"image": URL, "models": ["mine"], "deadline_s": 60}
    reply = httpx.post(f"{rehearsal.url}/v1/tasks/caption", json=body, timeout=90).json()
    assert [(column["model"], column["text"]) for column in reply["replies"]] == [("mine", "blue")]
    assert not rehearsal.replicas("mine")  # it has no process of its own


def test_loaded_adapter_answers_at_both_gateways_until_the_unloading(rehearsal: Running) -> None:
    def change(verb: str) -> str:
        body = {"lora_name": "loaded", "lora_path": "loaded"} if verb == "load" else {"lora_name": "loaded"}
        return httpx.post(f"{rehearsal.url}/v1/{verb}_lora_adapter", json=body, timeout=60).text

    def answers() -> set[str]:
        """Ask on connections of their own, which both gateways take."""
        body = {"image": URL, "models": ["loaded"], "deadline_s": 5}
        replies = [httpx.post(f"{rehearsal.url}/v1/tasks/caption", json=body, timeout=30).json() for _ in range(16)]
        return {reply["replies"][0]["text"] if "replies" in reply else reply["error"]["code"] for reply in replies}

    assert change("load") == "Success: LoRA adapter 'loaded' added successfully."
    assert answers() == {"green"}
    assert change("unload") == "Success: LoRA adapter 'loaded' removed successfully."
    assert answers() == {"model_not_found"}


def test_sleeping_model_wakes_for_a_request_and_scales(rehearsal: Running) -> None:
    name = "toy-paligemma-b"
    body = {"image": URL, "models": [name], "deadline_s": 60}

    def ask() -> dict[str, Any]:
        return dict(httpx.post(f"{rehearsal.url}/v1/tasks/caption", json=body, timeout=90).json())

    def replicas() -> int:
        return len(rehearsal.replicas(name))

    assert replicas() == 0
    assert f"{name} was asleep and is being started; ask again." in ask()["error"]["message"]
    assert until(lambda: rehearsal.state(name) == "ready", 120)
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        asking = [pool.submit(ask) for _ in range(12)]
        while replicas() < 2 and rehearsal.alive():
            asking += [pool.submit(ask) for _ in range(12)]
            concurrent.futures.wait(asking)
        answers = [future.result() for future in asking]
    assert not [reply for reply in answers if "replies" not in reply or reply["replies"][0]["status"] != "ok"]


def test_models_of_a_group_take_turns_also_after_their_scheduler_was_killed(rehearsal: Running) -> None:
    def fan_out() -> list[str]:
        """Ask both. Return the names of those that waited, in the order of their first notices."""
        body = {"image": URL, "question": "what?", "models": list(PAIR), "deadline_s": 60, "stream": True}
        with httpx.stream("POST", f"{rehearsal.url}/v1/tasks/vqa", json=body, timeout=90) as reply:
            events = frames(reply.read().decode())
        replies = [json.loads(data) for event, data in events if event == "reply"]
        assert sorted((each["model"], each["status"]) for each in replies) == [(name, "ok") for name in PAIR]
        waiting = [json.loads(data)["model"] for event, data in events if event == "waiting"]
        return list(dict.fromkeys(waiting))

    assert sorted(rehearsal.state(name) for name in PAIR) == ["asleep", "ready"]
    (first,) = fan_out()  # the other one was awake
    assert until(lambda: rehearsal.state(first) == "ready", 10)
    scheduler = rehearsal.replica("scheduler of pair")
    os.kill(scheduler, signal.SIGKILL)
    (second,) = fan_out()
    assert {first, second} == set(PAIR)
    assert until(lambda: rehearsal.state(second) == "ready", 10)
    entry = httpx.get(f"{rehearsal.url}/v1/models/{second}", timeout=30).json()["diptych"]
    assert entry["wakes"]["count"] >= 1 and entry["wakes"]["last_s"] >= 0.19


def test_two_gateways_share_a_port_and_either_is_enough(rehearsal: Running) -> None:
    def is_ready() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{rehearsal.url}/ready", timeout=10).json()["models"]["toy-llava"] == "ready"
        return False

    gateways = rehearsal.replicas("gateway")
    assert len(gateways) == 2
    os.kill(gateways[0], signal.SIGKILL)
    assert until(lambda: not alive(gateways[0]), 10)
    # the kernel may give the dead process's socket a connection or two more, on a busy machine
    assert until(lambda: all(is_ready() for _ in range(40)), 10)


def test_client_that_leaves_stops_the_model() -> None:
    """Run tests/deployments/local/leaving.py, a Ray driver that counts the running answers of a replica."""
    script = Path(__file__).with_name("leaving.py")
    done = subprocess.run([sys.executable, str(script), str(free_port())], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == ["vqa", "1", "0", "chat", "1", "0", "whole", "0"]


def test_sigterm_finishes_running_requests_refuses_new_ones_and_leaves_another_server_alone(
    rehearsal: Running, tmp_path: Path
) -> None:
    model = {"name": "toy-llava", "simulate": {"replies": "two " * 40, "delay_s": 0.1}}
    second = Running("--config", config(tmp_path, [model])).wait_for("Diptych is ready")
    assert second.ready()["models"] == {"toy-llava": "ready"}
    body = {"image": URL, "question": "what?", "max_tokens": 40}
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        begun = [pool.submit(httpx.post, f"{second.url}/v1/tasks/vqa", json=body, timeout=60) for _ in range(8)]
        time.sleep(1)
        second.process.send_signal(signal.SIGTERM)
        assert until(lambda: "Finishing what was begun" in second.output(), 10)
        late = []
        while not late or late[-1].status_code == 200:  # it takes a moment to come to the gateway
            late.append(httpx.post(f"{second.url}/v1/tasks/vqa", json={**body, "max_tokens": 1}, timeout=60))
        assert (late[-1].status_code, late[-1].json()["error"]["code"]) == (503, "stopping")
        assert int(late[-1].headers["retry-after"]) > 0
        assert [reply.result().json()["merged"]["result"]["answer"][:3] for reply in begun] == ["two"] * 8
    assert second.process.wait(60) == 0 and not second.leftovers()
    assert rehearsal.state("toy-llava") == "ready"


def test_interrupt_during_the_start_leaves_no_process(tmp_path: Path) -> None:
    running = Running("--config", config(tmp_path, [{"name": "toy-llava", "simulate": {"start_s": 600}}]))
    assert until(lambda: len(running.processes()) > 4, 120)
    assert running.interrupt() == 0
    assert not running.leftovers()
