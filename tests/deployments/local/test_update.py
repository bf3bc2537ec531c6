"""Requests during a change of config do not fail; when Ray ends, everything is restarted."""

import itertools
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from running import Running, asking, command, until
from served import URL

pytestmark = pytest.mark.ray

LLAVA = {"name": "toy-llava", "simulate": {"replies": "red", "first_delay_s": 0.05}}
PALIGEMMA = {"name": "toy-paligemma", "simulate": {"replies": "red", "first_delay_s": 0.05}}
SECOND = {"name": "toy-llava-b", "simulate": {"replies": "blue", "start_s": 2.0}}


class Changing:
    """A served config in a file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.write([LLAVA, PALIGEMMA])
        self.running = Running("--config", str(file)).wait_for("Diptych is ready")
        self.hangups = 0

    def write(self, models: list[dict[str, Any]], **gateway: Any) -> None:
        application = {
            "name": "diptych",
            "import_path": "deployments.app:build",
            "args": {"models": models, "gateway": gateway},
        }
        self.file.write_text(yaml.dump({"applications": [application]}))

    def change(self, text: str = "It serves by the new config") -> None:
        """Make the server read the file again, and wait until it prints `text`."""
        self.hangups += 1
        self.running.process.send_signal(signal.SIGHUP)
        assert until(lambda: self.ends() == self.hangups, 120), self.running.output()
        assert text in self.running.output().rpartition("Reading the config again.")[2], self.running.output()

    def ends(self) -> int:
        printed = self.running.output()
        return printed.count("It serves by the new config") + printed.count("The config from before serves on.")

    def ask(self, **fields: Any) -> httpx.Response:
        body = {"image": URL, "question": "what colour?", "deadline_s": 20, **fields}
        return httpx.post(f"{self.running.url}/v1/tasks/vqa", json=body, timeout=30)

    def columns(self) -> dict[str, Any]:
        return {reply["model"]: reply["text"] or reply["error"] for reply in self.ask().json()["replies"]}


@pytest.fixture(scope="module")
def changing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Changing]:
    served = Changing(tmp_path_factory.mktemp("changing") / "config.yaml")
    try:
        yield served
    finally:
        code = served.running.interrupt(signal.SIGTERM)
    assert code == 0 and not served.running.leftovers()


def test_no_request_is_lost_while_models_are_added_changed_and_removed(changing: Changing) -> None:
    with asking(changing.ask) as outcomes:
        mirror = {"name": "mirror", "remote": f"{changing.running.url}/v1", "model": "toy-llava"}  # on another server
        changing.write([LLAVA, PALIGEMMA, SECOND, mirror])
        changing.change()
        columns = {"toy-llava": "red", "toy-llava-b": "blue", "toy-paligemma": "red", "mirror": "red"}
        assert changing.columns() == columns
        before = changing.running.replica("toy-llava"), changing.running.replica("gateway")

        green = {"replies": "green", "first_delay_s": 0.05, "start_s": 2.0}
        changing.write([{**LLAVA, "weight": 3}, {**PALIGEMMA, "simulate": green}, SECOND], max_body_mb=5)
        changing.change()
        assert changing.columns() == {"toy-llava": "red", "toy-llava-b": "blue", "toy-paligemma": "green"}
        assert changing.ask().json()["merged"]["result"]["answer"] == "red"  # three for red, one for each other
        assert (changing.running.replica("toy-llava"), changing.running.replica("gateway")) == before

        changing.write([LLAVA, PALIGEMMA])
        changing.change()
        assert changing.columns() == {"toy-llava": "red", "toy-paligemma": "red"}
        assert changing.ask(models=["toy-llava-b"]).status_code == 404
        assert until(lambda: len(outcomes) >= 1000, 120)
    assert set(outcomes) == {"ok"}, [outcome for outcome in outcomes if outcome != "ok"][:3]


def test_unusable_config_changes_nothing(changing: Changing) -> None:
    broken = {**PALIGEMMA, "simulate": {"fail_start": "The weights are cut off."}}
    with asking(changing.ask, people=2) as outcomes:
        for models, text in (
            ([LLAVA, {"name": "toy-lava"}], "There is no model 'toy-lava'"),
            ([LLAVA, {**PALIGEMMA, "replicas": 0}], "models.1 (toy-paligemma): replicas"),
            ([LLAVA, PALIGEMMA, {**SECOND, "num_gpus": 1}], "asks for 1 GPUs and this machine has 0"),
            ([LLAVA, broken], "The weights are cut off."),
        ):
            changing.write(models)
            changing.change("The config from before serves on.")
            assert text in changing.running.output().rpartition("Reading the config again.")[2]
        for gateway, text in (
            ({"keys_file": "/nowhere/keys"}, "/nowhere/keys"),
            ({"num_cpus": 1000}, "asks for 1001 CPUs"),
            ({"resources": {"card": 1}}, "asks for 1 card and this machine has 0"),
            ({"results": "/nowhere/results.db"}, "/nowhere/results.db"),
        ):
            changing.write([LLAVA], **gateway)
            changing.change("The config from before serves on.")
            assert text in changing.running.output().rpartition("Reading the config again.")[2]
        changing.file.write_bytes(b"# caf\xe9")
        changing.change("is not UTF-8")
        assert changing.columns() == {"toy-llava": "red", "toy-paligemma": "red"}
    assert set(outcomes) == {"ok"}, [outcome for outcome in outcomes if outcome != "ok"][:3]


def test_end_of_ray_restarts_everything(changing: Changing) -> None:
    kind = "raylet"  # make chaos kills the other, gcs_server
    changing.write([LLAVA, PALIGEMMA])
    process = next(p for p in changing.running.processes() if f"/{kind}" in command(p).partition(" ")[0])
    os.kill(process, signal.SIGKILL)
    assert until(lambda: f"Ray's {kind} has ended. Starting everything again." in changing.running.output(), 10)
    for _ in itertools.count():
        began = time.monotonic()
        try:
            if changing.ask().status_code == 200 and changing.running.output().count("Diptych is ready") > 1:
                break
        except httpx.TransportError:
            time.sleep(0.2)
        assert time.monotonic() - began < 25  # refused or answered, but never left hanging
        assert changing.running.alive(), changing.running.output()
    assert until(lambda: changing.columns() == {"toy-llava": "red", "toy-paligemma": "red"}, 60)
