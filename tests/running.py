"""Runs `python -m deployments` as a child process."""

import concurrent.futures
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil

from serve.engines.vllm.process_tree import descendants

ROOT = Path(__file__).parents[1]
START_S = 600.0  # 15 s of work, on a machine that may be busy


class Running:
    """A server started with `arguments` on a free port. script: one that starts it in another way, and reads stdin."""

    def __init__(self, *arguments: str, script: Path | None = None) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._out = tempfile.NamedTemporaryFile("w+", suffix=".log")  # noqa: SIM115 (lives as long as the process)
        weakref.finalize(self, self._out.close)
        program = ("-m", "deployments") if script is None else (str(script),)
        self.process = subprocess.Popen(
            [sys.executable, *program, "--port", str(self.port), *arguments],
            stdin=None if script is None else subprocess.PIPE,
            stdout=self._out,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            # vLLM, where a test has imported it here, makes every later process load torch's libgomp
            env={name: value for name, value in os.environ.items() if name != "LD_PRELOAD"},
            start_new_session=True,
        )
        self.seen: set[int] = set()

    def output(self) -> str:
        return Path(self._out.name).read_text()

    def wait_for(self, text: str) -> "Running":
        """Wait until the text has been printed."""
        ended = until(lambda: text in self.output() or self.process.poll() is not None, START_S)
        assert ended and text in self.output(), f"{text!r} was not printed:\n{self.output()}"
        self.processes()
        return self

    def ready(self) -> dict[str, Any]:
        return dict(httpx.get(f"{self.url}/ready", timeout=30).json())

    def state(self, model: str) -> str:
        return str(self.ready()["models"][model])

    def alive(self) -> bool:
        return self.process.poll() is None

    def processes(self) -> list[int]:
        """Return the ids of the server's processes."""
        ids = descendants([self.process.pid])
        self.seen.update(ids)
        return ids

    def replica(self, name: str) -> int:
        """Return the process id of a model's replica, or of the gateway."""
        return next(iter(self.replicas(name)))

    def replicas(self, name: str) -> list[int]:
        """Return the process ids of a model's replicas, or of the gateways."""
        title = re.compile(rf"ray::ServeReplica:[^:]*:{re.escape(name)}(?![\w-])")
        return [p for p in self.processes() if title.match(command(p)) and not title.match(command(parent(p)))]

    def engine(self, name: str) -> int:
        """Return the id of vLLM's process for a model: the larger of its replica's children."""
        return max(descendants([self.replica(name)])[1:], key=resident)

    def interrupt(self, number: int = signal.SIGINT, seconds: float = 60.0) -> int:
        """Send a signal, as Ctrl-C does, and return the exit status."""
        self.processes()
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)  # a terminal signals everything in the foreground
        try:
            return self.process.wait(seconds)
        finally:
            for process in [p for p in self.seen if alive(p)] if self.process.poll() is None else []:
                os.kill(process, signal.SIGKILL)

    def leftovers(self) -> list[str]:
        """Return the command lines of processes that still run."""
        return [command(process) for process in self.seen if alive(process)]


@contextlib.contextmanager
def asking(ask: Callable[[], httpx.Response], people: int = 6) -> Iterator[list[str]]:
    """Send requests from `people` threads. Yields the outcomes: "ok", or the failure."""
    outcomes: list[str] = []
    done = threading.Event()

    def person() -> None:
        while not done.is_set():
            try:
                reply = ask()
                columns = reply.json().get("replies", [{"status": reply.text}])
                outcomes.append(str([column for column in columns if column["status"] != "ok"] or "ok"))
            except httpx.TransportError as error:
                outcomes.append(repr(error))

    with concurrent.futures.ThreadPoolExecutor(people) as pool:
        for _ in range(people):
            pool.submit(person)
        try:
            yield outcomes
        finally:
            done.set()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def until(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not (is_true := condition()) and time.monotonic() < end:
        time.sleep(0.2)
    return is_true


def command(process: int) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(psutil.Process(process).cmdline()).strip()
    return ""


def parent(process: int) -> int:
    with contextlib.suppress(psutil.Error):
        return int(psutil.Process(process).ppid())
    return 0


def resident(process: int) -> int:
    """Return the resident memory in bytes."""
    with contextlib.suppress(psutil.Error):
        return int(psutil.Process(process).memory_info().rss)
    return 0


def alive(process: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(process).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    return False
