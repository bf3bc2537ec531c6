"""`python -m deployments` as a process of its own, watched from outside."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil

from serve.engines.vllm.process_tree import descendants

ROOT = Path(__file__).parents[1]
START_S = 600.0  # a quarter of a minute of work, on a machine that may have ten other things to do


class Running:
    """A Diptych that was started with `arguments`, on a free port."""

    def __init__(self, *arguments: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._out = tempfile.NamedTemporaryFile("w+", suffix=".log")  # noqa: SIM115 (lives as long as the process)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "deployments", "--port", str(self.port), *arguments],
            stdout=self._out,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            start_new_session=True,
        )
        self.seen: set[int] = set()

    def said(self) -> str:
        return Path(self._out.name).read_text()

    def wait_for(self, words: str) -> "Running":
        """Until it has said them."""
        ended = until(lambda: words in self.said() or self.process.poll() is not None, START_S)
        assert ended and words in self.said(), f"{words!r} was not said:\n{self.said()}"
        self.processes()
        return self

    def ready(self) -> dict[str, Any]:
        return dict(httpx.get(f"{self.url}/ready", timeout=30).json())

    def state(self, model: str) -> str:
        return str(self.ready()["models"][model])

    def alive(self) -> bool:
        return self.process.poll() is None

    def processes(self) -> list[int]:
        """Everything that comes from it, now."""
        found = descendants([self.process.pid])
        self.seen.update(found)
        return found

    def replica(self, name: str) -> int:
        """The process of a model, or of the gateway."""
        title = f"ray::ServeReplica:diptych:{name}"
        return next(
            p for p in self.processes() if command(p).startswith(title) and not command(parent(p)).startswith(title)
        )

    def engine(self, name: str) -> int:
        """vLLM's own process behind a model: the larger of its replica's children."""
        return max(descendants([self.replica(name)])[1:], key=resident)

    def interrupt(self, number: int = signal.SIGINT, seconds: float = 60.0) -> int:
        """Stop it as Ctrl-C does, and say how it ended."""
        self.processes()
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)  # a terminal signals everything in the foreground
        try:
            return self.process.wait(seconds)
        finally:
            for process in [p for p in self.seen if alive(p)] if self.process.poll() is None else []:
                os.kill(process, signal.SIGKILL)

    def left(self) -> list[str]:
        """What of it still runs."""
        return [command(process) for process in self.seen if alive(process)]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def until(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < end:
        time.sleep(0.2)
    return met


def command(process: int) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(psutil.Process(process).cmdline()).strip()
    return ""


def parent(process: int) -> int:
    with contextlib.suppress(psutil.Error):
        return int(psutil.Process(process).ppid())
    return 0


def resident(process: int) -> int:
    """Bytes."""
    with contextlib.suppress(psutil.Error):
        return int(psutil.Process(process).memory_info().rss)
    return 0


def alive(process: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(process).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    return False
