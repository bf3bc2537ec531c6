import subprocess
import sys

import pytest

from serve.engines.vllm.stderr_tail import StderrTail

CHILD = """
import sys
print("(EngineCore pid=12) ERROR 11-23 19:25:31 [core.py:12] Traceback (most recent call last):", file=sys.stderr)
print("(EngineCore pid=12) ERROR 11-23 19:25:31 [core.py:12] ValueError: wrong weights", file=sys.stderr)
print("RuntimeError: Engine core initialization failed. See root cause above.", file=sys.stderr)
"""


def test_reason_is_the_childs_first_logged_fault(capfd: pytest.CaptureFixture[str]) -> None:
    with StderrTail() as tail:
        subprocess.run([sys.executable, "-c", CHILD], check=True)
        error = RuntimeError("Engine core initialization failed. See root cause above.")
        assert tail.reason(error) == "wrong weights"
        assert tail.reason(ValueError("our own\n complaint")) == "our own complaint"
    assert "wrong weights" in capfd.readouterr().err  # it is passed on, too
