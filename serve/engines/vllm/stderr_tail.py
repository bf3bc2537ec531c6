"""Keep the last lines that child processes write to standard error, to report why a start failed.

vLLM's EngineCore logs why it could not start and exits; its parent only learns that it exited. All lines are passed on
to the real standard error for as long as the children live.
"""

import collections
import os
import re
import sys
import threading
from typing import Any

PREFIX = re.compile(r"^(\(\w+ pid=\d+\)\s*)?([A-Z]+ \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]+\]\s*)?")
FAULT = re.compile(r"^([\w.]*(?:Error|Exception|RejectedFile|SpanCut)): (.+)$")


class StderrTail:
    """A context manager that captures the standard error of processes started within it."""

    def __init__(self) -> None:
        self.lines: collections.deque[str] = collections.deque(maxlen=400)

    def __enter__(self) -> "StderrTail":
        sys.stderr.flush()
        self._real = os.dup(2)
        read, write = os.pipe()
        os.dup2(write, 2)
        os.close(write)
        # The thread ends when the last process that holds the pipe is gone.
        self._thread = threading.Thread(target=self._pass_on, args=(read, os.dup(self._real)), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        sys.stderr.flush()
        os.dup2(self._real, 2)
        os.close(self._real)

    def reason(self, error: BaseException) -> str:
        """Return the first fault that was logged, in one line; the error's own message where none was."""
        self._thread.join(0.2)
        faults = [match for line in list(self.lines) if (match := FAULT.match(PREFIX.sub("", line).strip()))]
        causes = [fault[2] for fault in faults if "See root cause above" not in fault[2]]
        return causes[0] if causes and "Engine core" in str(error) else " ".join(str(error).split())

    def _pass_on(self, read: int, real: int) -> None:
        with os.fdopen(read, "rb", buffering=0) as source:
            rest = b""
            while chunk := source.read(65536):
                os.write(real, chunk)
                *lines, rest = (rest + chunk).split(b"\n")
                self.lines.extend(line.decode(errors="replace") for line in lines)
        os.close(real)
