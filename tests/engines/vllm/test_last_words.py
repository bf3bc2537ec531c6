import subprocess
import sys

import pytest

from serve.engines.vllm.last_words import LastWords

CHILD = """
import sys
print("(EngineCore pid=12) ERROR 11-23 19:25:31 [core.py:12] Traceback (most recent call last):", file=sys.stderr)
print("(EngineCore pid=12) ERROR 11-23 19:25:31 [core.py:12] ValueError: wrong weights", file=sys.stderr)
print("RuntimeError: Engine core initialization failed. See root cause above.", file=sys.stderr)
"""


def test_a_child_says_why_it_could_not_start(capfd: pytest.CaptureFixture[str]) -> None:
    with LastWords() as words:
        subprocess.run([sys.executable, "-c", CHILD], check=True)
        error = RuntimeError("Engine core initialization failed. See root cause above.")
        assert words.reason(error) == "wrong weights"
        assert words.reason(ValueError("our own\n complaint")) == "our own complaint"
    assert "wrong weights" in capfd.readouterr().err  # it is passed on, too
