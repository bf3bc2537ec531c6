"""`make chaos` and `make soak` in their shortest form, each on a server of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.engine
ROOT = Path(__file__).parents[2]


def run(kind: str, *arguments: str) -> str:
    """Return its output. Exit code 1 is accepted: on a busy machine a line may be missed."""
    line = [sys.executable, "-m", "loadtest.bench", kind, *arguments]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


def test_chaos_run_of_two_faults_fails_no_other_request(tmp_path: Path) -> None:
    run("chaos", "--only", "F1,F8", "--out", str(tmp_path))
    rows = json.loads((tmp_path / "chaos.json").read_text())
    assert list(rows) == ["F1", "F8"]
    assert rows["F1"]["requests"] > 50 and 0 < rows["F1"]["recover"] < 30  # the kill was noticed, and it came back
    assert [(row["failed"], row["hung"]) for row in rows.values()] == [(0, 0), (0, 0)], rows


def test_short_soak_has_no_unexpected_answer(tmp_path: Path) -> None:
    output = run("soak", "--minutes", "0.15", "--rate", "15", "--out", str(tmp_path))
    assert "met    unexpected: nothing" in output and "met    0 answers are spoken" in output, output
