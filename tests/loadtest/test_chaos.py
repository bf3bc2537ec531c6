"""The faults and the soak run, in their shortest form, on a server of their own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]


def run(module: str, *arguments: str) -> str:
    """What it prints. 1 says that a line was missed, which on a machine that does ten other things is no fault."""
    line = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


def test_two_faults_are_done_and_cost_nobody_else_anything(tmp_path: Path) -> None:
    run("loadtest.chaos", "--only", "F1,F8", "--out", str(tmp_path))
    rows = json.loads((tmp_path / "chaos.json").read_text())
    assert list(rows) == ["F1", "F8"]
    assert rows["F1"]["requests"] > 50 and 0 < rows["F1"]["recover"] < 30  # the kill was noticed, and it came back
    assert [(row["failed"], row["hung"]) for row in rows.values()] == [(0, 0), (0, 0)], rows


def test_a_short_soak_has_nothing_unexpected(tmp_path: Path) -> None:
    said = run("loadtest.soak", "--minutes", "0.15", "--rate", "15", "--out", str(tmp_path))
    assert "met    unexpected: nothing" in said and "met    0 answers are spoken" in said, said
