"""The GPU check without a GPU: its reasons, its limits, its report and its rehearsal."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from running import alive, until

from deployments.local.gpus import Gpu
from loadtest import gpu_check
from loadtest.gpu_check import Part

CARD = Gpu(0, "Some card", int(80e9), int(79e9), "580.1", (9, 0))


def test_machine_without_a_large_gpu_gets_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "_version", lambda name: "" if name == "vllm" else "1")
    assert "the build for CPUs" in (gpu_check.missing([CARD], False) or "")
    assert gpu_check.missing([], True) is None
    monkeypatch.setattr(gpu_check, "_version", lambda name: "1")
    assert "no GPU is seen here" in (gpu_check.missing([], False) or "")
    assert "Some card has 12.0 GB" in (gpu_check.missing([Gpu(0, "Some card", int(12e9), 0, "", (9, 0))], False) or "")
    assert gpu_check.missing([CARD], False) is None


def check(tmp_path: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    status = gpu_check.main(["--rehearse", "--out", str(tmp_path), *arguments])
    return status, json.loads((tmp_path / "report.json").read_text())["parts"], (tmp_path / "report.md").read_text()


def test_part_that_runs_again_leaves_the_others_in_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def well(folder: Path, rehearse: bool, limit_s: float) -> tuple[bool, dict[str, Any]]:
        return True, {"table": [["model", "rate"], ["a | b", "1.0"]], "starts": {"a": [[1.25, "loading"]]}}

    def ill(folder: Path, rehearse: bool, limit_s: float) -> tuple[bool, dict[str, Any]]:
        raise RuntimeError("broken")

    monkeypatch.setattr(gpu_check, "PARTS", {"a": Part("First", 9, 9, well), "b": Part("Second", 9, 9, ill)})
    status, parts, text = check(tmp_path)
    assert status == 1 and (parts["a"]["state"], parts["b"]["state"]) == ("well", "NOT WELL")
    assert "RuntimeError: broken" in text and "| a / b | 1.0 |" in text and "- a: 1.2 s loading" in text
    status, again, _ = check(tmp_path, "--parts", "a")
    assert status == 0 and again["b"] == parts["b"]
    with pytest.raises(SystemExit):
        check(tmp_path, "--parts", "z")


@pytest.mark.slow
def test_command_whose_time_is_over_ends_with_its_children(tmp_path: Path) -> None:
    child = "import time; time.sleep(60)"
    program = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {child!r}]).pid, flush=True)"
    began = time.monotonic()
    done = gpu_check.run([sys.executable, "-c", f"{program}; {child}"], tmp_path / "log.txt", 1.0)
    assert done.over == "its 1 s were over" and time.monotonic() - began < 20
    assert until(lambda: not alive(int(done.text)), 5.0)


@pytest.mark.parametrize(
    ("line", "well"),
    [
        ("FAULT  hub: https://hub does not answer, and llava-1.5-7b must come from there -> connect it", True),
        ("FAULT  plan, llava-1.5-7b: its headers cannot be read yet -> 1 GPU of 24 GB", True),
        ("FAULT  driver: 550, and CUDA 13 needs 580 or newer -> install a newer driver", False),
    ],
)
def test_doctor_part_is_well_where_only_checkpoints_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, well: bool
) -> None:
    done = gpu_check.Done(1, f"ok     Python: 3.11.7\n{line}\n1 of these would keep it from serving.\n")
    monkeypatch.setattr(gpu_check, "run", lambda *_: done)
    is_well, tables = gpu_check._doctor(tmp_path, False, 30)
    assert is_well == well and tables["findings"][2] == ["FAULT", *line[7:].split(": ", 1)]


@pytest.mark.parametrize(("status", "rows", "well"), [(0, 2, True), (0, 1, False), (1, 2, False)])
def test_parity_part_is_well_where_its_tests_pass_and_fill_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, rows: int, well: bool
) -> None:
    def run(command: list[str], log: Path, limit_s: float, variables: dict[str, str]) -> gpu_check.Done:
        assert all((gpu_check.ROOT / test.partition("::")[0]).exists() for test in command if "::" in test)
        Path(variables["DIPTYCH_PARITY_TABLE"]).write_text(json.dumps([["toy", "equal"]] * rows))
        return gpu_check.Done(status, "1 passed\n")

    monkeypatch.setattr(gpu_check, "run", run)
    for rehearse in (True, False):
        is_well, tables = gpu_check._parity(tmp_path, rehearse, 30)
        assert is_well == well and len(tables["table"]) == rows and ("end" in tables) == bool(status)


@pytest.mark.ray
@pytest.mark.engine
def test_rehearsal_ends_well_in_every_part(tmp_path: Path) -> None:
    """Run all parts but b, whose own tests run beside this one."""
    names = [name for name in gpu_check.PARTS if name != "b"]
    command = [sys.executable, "-m", "loadtest.gpu_check", "--rehearse", "--parts", ",".join(names)]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], cwd=gpu_check.ROOT, capture_output=True, text=True, timeout=1200
    )
    parts = json.loads((tmp_path / "report.json").read_text())["parts"]
    assert {name: part["state"] for name, part in parts.items()} == dict.fromkeys(names, "well"), done.stdout
