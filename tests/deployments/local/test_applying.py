"""On a cluster each model is an application of its own: what happens to one touches no other's processes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from running import Running, asking, until
from served import URL

pytestmark = pytest.mark.ray

SCRIPT = Path(__file__).with_name("applying.py")
APPLIED_S = 120.0


def model(name: str, reply: str, **engine: Any) -> dict[str, Any]:
    return {"name": name, "drain_s": 2, "simulate": {"replies": reply, "first_delay_s": 0.2, **engine}}


LLAVA = model("toy-llava", "red")


class Applied:
    """A Ray to which configs are applied."""

    def __init__(self, folder: Path) -> None:
        self.file, self.weights = folder / "serve.yaml", folder / "weights"
        self.running = Running(script=SCRIPT).wait_for("up")

    def apply(self, *models: dict[str, Any], seconds: float = APPLIED_S, **gateway: Any) -> dict[str, str]:
        """Apply a config. Return the states of the applications, once all run, or after `seconds`."""
        gateway = {"listen": {"host": "127.0.0.1", "port": self.running.port}, **gateway}
        application = {"import_path": "deployments.app:build", "args": {"models": list(models), "gateway": gateway}}
        self.file.write_text(yaml.dump({"applications": [application]}))
        before = len(self.printed)
        assert self.running.process.stdin is not None
        self.running.process.stdin.write(f"{self.file} {seconds}\n".encode())
        self.running.process.stdin.flush()
        until(lambda: len(self.printed) > before or not self.running.alive(), seconds + 30)
        assert len(self.printed) > before, self.running.output()
        return dict(json.loads(self.printed[-1]))

    @property
    def printed(self) -> list[str]:
        """Return the script's lines of JSON, among what Ray prints."""
        return [line for line in self.running.output().splitlines() if line.startswith("{") and line.endswith("}")]

    def ask(self, **fields: Any) -> httpx.Response:
        body = {"image": URL, "question": "what colour?", "deadline_s": 20, **fields}
        return httpx.post(f"{self.running.url}/v1/tasks/vqa", json=body, timeout=30)

    def columns(self) -> dict[str, str]:
        """Return each model's text; nothing while no gateway, or no model, answers."""
        try:
            return {reply["model"]: reply["text"] for reply in self.ask().json().get("replies", [])}
        except httpx.TransportError:
            return {}

    def wait_for(self, columns: dict[str, str]) -> None:
        """Wait until a request has these columns. The machine may be busy."""
        until(lambda: self.columns() == columns, APPLIED_S)
        assert self.columns() == columns

    def processes(self, *names: str) -> dict[str, list[int]]:
        return {name: self.running.replicas(name) for name in names}


@pytest.fixture
def applied(tmp_path: Path) -> Iterator[Applied]:
    served = Applied(tmp_path)
    try:
        yield served
    finally:
        assert served.running.process.stdin is not None
        served.running.process.stdin.close()
        served.running.process.wait(60)
    assert not served.running.leftovers()


def test_models_are_mended_added_changed_and_removed_without_a_lost_request_or_another_ones_restart(
    applied: Applied,
) -> None:
    broken = {**model("toy-paligemma", "red", needs=str(applied.weights)), "retry_s": 1, "retry_max_s": 1}
    required = {**broken, "required": True}
    homeless = {**model("toy-paligemma-b", "grey"), "num_gpus": 1}  # there is none
    applied.apply(LLAVA, required, homeless, seconds=0)
    columns = {"toy-llava": "red", "toy-paligemma": "", "toy-paligemma-b": ""}
    applied.wait_for(columns)  # from the first start on
    ready = applied.running.ready()
    assert (ready["status"], ready["awaited"]) == ("starting", ["toy-paligemma"])
    assert ready["details"]["toy-paligemma-b"]["step"].startswith("starting its process")
    why = f"There is no {applied.weights}. It is tried again after 1 s."
    assert until(lambda: applied.running.ready()["details"]["toy-paligemma"]["step"] == why, 10)
    states = applied.apply(LLAVA, required, seconds=3)  # the gateway, which waits for the required one, hears of it
    states.pop("toy-paligemma-b", None)  # it may be ending
    assert states == {"diptych": "DEPLOYING", "toy-llava": "RUNNING", "toy-paligemma": "RUNNING"}
    del columns["toy-paligemma-b"]
    applied.wait_for(columns)
    before = applied.processes("gateway", "toy-llava", "toy-paligemma")
    applied.weights.touch()
    columns["toy-paligemma"] = "red"
    applied.wait_for(columns)
    assert applied.processes(*before) == before

    with asking(applied.ask, people=2) as outcomes:
        del before["toy-paligemma"]
        green, second = model("toy-paligemma", "green", start_s=1), model("toy-llava-b", "blue", start_s=1)
        llava = {**LLAVA, "weight": 3, "max_ongoing_requests": 900}
        states = applied.apply(llava, green, second, max_body_mb=5)
        assert states == dict.fromkeys(("diptych", "toy-llava", "toy-paligemma", "toy-llava-b"), "RUNNING")
        columns |= {"toy-paligemma": "green", "toy-llava-b": "blue"}
        applied.wait_for(columns)
        assert applied.processes(*before) == before
        assert until(lambda: len(applied.running.replicas("toy-paligemma")) == 1, 10)
        changed = applied.running.replica("toy-paligemma")

        applied.weights.unlink()  # a change to a broken model: the replica from before answers on
        states = applied.apply(llava, broken, seconds=10, max_body_mb=5)
        states.pop("toy-llava-b", None)
        assert states == {"diptych": "RUNNING", "toy-llava": "RUNNING", "toy-paligemma": "DEPLOYING"}
        del columns["toy-llava-b"]
        assert applied.columns() == columns and changed in applied.running.replicas("toy-paligemma")
        assert applied.ask(models=["toy-llava-b"]).status_code == 404
        assert applied.processes(*before) == before
    assert set(outcomes) == {"ok"}, [outcome for outcome in outcomes if outcome != "ok"][:3]
