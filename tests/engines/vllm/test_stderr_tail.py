import subprocess
import sys

import pytest

from serve.engines.vllm.stderr_tail import StderrTail

CHILD = """
import sys
print("(EngineCore pid=12) ERROR 11-23 19:25:31 [core.py:12] Traceback (most recent call last):", file=sys.stderr)
print("(EngineCore pid=12) ERROR 11-23 19:25:31 [core.py:12] " + sys.argv[1], file=sys.stderr)
print("RuntimeError: Engine core initialization failed. See root cause above.", file=sys.stderr)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("logged", "reason"),
    [
        ("ValueError: wrong weights", "wrong weights"),
        (
            "RuntimeError: Failed to find C compiler. Please specify via CC environment variable.",  # Triton's
            "Failed to find C compiler. Please specify via CC environment variable.",
        ),
    ],
)
def test_reason_is_the_childs_first_logged_fault(capfd: pytest.CaptureFixture[str], logged: str, reason: str) -> None:
    with StderrTail() as tail:
        subprocess.run([sys.executable, "-c", CHILD, logged], check=True)
        error = RuntimeError("Engine core initialization failed. See root cause above.")
        assert tail.reason(error) == reason
        assert tail.reason(ValueError("our own\n complaint")) == "our own complaint"
    assert logged in capfd.readouterr().err  # it is passed on, too
