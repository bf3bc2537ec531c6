"""The cluster of network namespaces, models without weights. `make k8s-drill` does a drain and one more kill."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.engine

STEPS = ("start", "watch", "roll", "kill_gateway")
ROOT = Path(__file__).parents[2]


def test_nothing_is_lost_by_what_befalls_a_cluster() -> None:
    command = [sys.executable, "-m", "k8s.drill", "--simulated", "--steps", ",".join(STEPS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    if done.returncode == 2:
        pytest.skip(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    for step in STEPS:
        assert f"ok    {step}: " in done.stdout
