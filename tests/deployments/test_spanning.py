"""A model too large for one node: a placement group with a bundle for each of its GPUs, which Ray puts on two nodes."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray


def test_gpus_of_a_model_that_spans_nodes_are_bundles_on_two_nodes() -> None:
    command = [sys.executable, str(Path(__file__).with_name("spanning.py"))]
    root = Path(__file__).parents[2]
    env = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    placed = json.loads(done.stdout.splitlines()[-1])
    first, *others = placed["bundles"]
    assert first == {"CPU": 1, "GPU": 1, "large": 1} and others == [{"GPU": 1, "large": 1}] * 3
    assert sorted(Counter(placed["nodes"]).values()) == [2, 2]
    assert placed["strategy"] == "PACK" and placed["free"] == {"GPU": 0, "large": 0}
