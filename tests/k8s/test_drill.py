"""The cluster of network namespaces, with models without weights: a changed config, kills and a drain."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.engine

ROOT = Path(__file__).parents[2]


def test_nothing_is_lost_by_what_befalls_a_cluster() -> None:
    command = [sys.executable, "-m", "k8s.drill", "--simulated"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    if done.returncode == 2:
        pytest.skip(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    for step in ("start", "watch", "roll", "kill_gateway", "drain_gateway", "kill_models"):
        assert f"ok    {step}: " in done.stdout
