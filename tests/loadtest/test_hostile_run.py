"""`make hostile` in its shortest form, on the toys with their real engines."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.engine
ROOT = Path(__file__).parents[2]
INPUTS = ("zTXt", "2 x 9000", "charsets", "a second request, and the client leaves", "another site")


def test_hostile_run_answers_every_input_and_leaves_nothing(tmp_path: Path) -> None:
    only = [word for text in INPUTS for word in ("--only", text)]
    line = [sys.executable, "-m", "loadtest.bench", "hostile", *only, "--out", str(tmp_path)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    rows = json.loads((tmp_path / "hostile.json").read_text())
    assert len(rows) == len(INPUTS)
    for row in rows:  # how long ordinary clients waited depends on the machine that the tests run on
        assert set(row["faults"]) <= {"/health", "the small picture"}, row
