"""Clients that ask all the time, in a process of their own: /health, and a question about a small picture.

`python -m loadtest.probes URL KIND...` writes a line of JSON for each answer: [kind, when it was sent, seconds,
status], times by the system's monotonic clock. It ends when its stdin does.
"""

import contextlib
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from loadtest.hostile_files import png
from loadtest.raw_http import form

EVERY_S = 0.05
HEALTH, PICTURE = "health", "picture"
TIMEOUT_S = 60.0
PRIORITY = -10
ASKING = threading.Event()


@dataclass(frozen=True)
class Sample:
    """An answer. at: when it was asked for, seconds of the monotonic clock; status: 0 where none came."""

    at: float
    seconds: float
    status: int


class Probes:
    """The process with these kinds of clients, and their samples so far."""

    def __init__(self, url: str, *kinds: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "loadtest.probes", url, *kinds],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._samples: dict[str, list[Sample]] = {kind: [] for kind in kinds}
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            kind, *values = json.loads(line)
            self._samples[kind].append(Sample(*values))

    def during(self, kind: str, began: float, ended: float) -> list[Sample]:
        """Return the requests that were sent, or waited for their answer, between these times."""
        samples = list(self._samples[kind])
        return [sample for sample in samples if sample.at <= ended and sample.at + sample.seconds >= began]

    def send(self, command: str) -> None:
        """Send the clients "pause", which lets the requests under way end, or "ask", to go on."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()

    def close(self) -> None:
        """End the process; requests under way are given up."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _repeat(host: str, port: int, kind: str) -> None:
    count = 0
    while ASKING.wait():
        count += 1
        method, path, body, headers = "GET", "/health", b"", {}
        if kind == PICTURE:
            picture = png(48 + count % 64, 48 + count // 64 % 64)
            request = form("/v1/tasks/vqa", {"question": "what is this?"}, image=picture)
            method, path, body, headers = request.method, request.path, request.body, dict(request.headers)
        at = time.monotonic()
        connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
        try:
            connection.request(method, path, body or None, headers)
            reply = connection.getresponse()
            reply.read()
            status = reply.status
        except (OSError, http.client.HTTPException):
            status = 0
        finally:
            connection.close()
        sys.stdout.write(json.dumps([kind, at, time.monotonic() - at, status]) + "\n")
        sys.stdout.flush()
        time.sleep(EVERY_S)


def _take_priority() -> None:
    """Take a processor before others do, where that is allowed: ordinary clients have machines of their own.

    The samples are then the server's time, and not this process's wait behind it. Linux shares processors among
    sessions before it looks at nice values, so the session goes first as well.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)
        Path("/proc/self/autogroup").write_text(str(PRIORITY))


def main(url: str, *kinds: str) -> None:
    """Ask until stdin ends, with pauses where a line of it is "pause"."""
    _take_priority()
    ASKING.set()
    address = urlsplit(url)
    for kind in kinds:
        threading.Thread(target=_repeat, args=(address.hostname, address.port, kind), daemon=True).start()
    for line in sys.stdin:
        if line == "pause\n":
            ASKING.clear()
        else:
            ASKING.set()


if __name__ == "__main__":
    main(*sys.argv[1:])
