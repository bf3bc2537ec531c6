"""Two clients that ask all the time, in a process of their own: /health, and a question about a small picture.

`python -m loadtest.probes URL` writes a line of JSON for each answer: [which, when it was asked, seconds, status],
times by the system's monotonic clock. It ends when its stdin does.
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

EVERY_S = 0.05
HEALTH, PICTURE = "health", "picture"
TIMEOUT_S = 60.0
PRIORITY = -10
ASKING = threading.Event()


@dataclass(frozen=True)
class Sample:
    """One answer. at: when it was asked, seconds of the monotonic clock; status: 0 where none came."""

    at: float
    seconds: float
    status: int


class Probes:
    """The process and what it has seen so far."""

    def __init__(self, url: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "loadtest.probes", url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._seen: dict[str, list[Sample]] = {HEALTH: [], PICTURE: []}
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            which, *values = json.loads(line)
            self._seen[which].append(Sample(*values))

    def during(self, which: str, began: float, ended: float) -> list[Sample]:
        """Return what was asked, or still waited for its answer, between these times."""
        return [one for one in list(self._seen[which]) if one.at <= ended and one.at + one.seconds >= began]

    def pause(self) -> None:
        """Have it ask nothing more until `resume`; what was asked is still answered."""
        self._tell("pause")

    def resume(self) -> None:
        """Have it ask on."""
        self._tell("ask")

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def close(self) -> None:
        """End the process; what it still waits for is given up."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _ask(host: str, port: int, which: str, method: str, path: str, body: bytes | None, kind: str) -> None:
    at = time.monotonic()
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request(method, path, body, {"content-type": kind} if body else {})
        reply = connection.getresponse()
        reply.read()
        status = reply.status
    except (OSError, http.client.HTTPException):
        status = 0
    finally:
        connection.close()
    line = json.dumps([which, at, time.monotonic() - at, status])
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _beat(host: str, port: int) -> None:
    while ASKING.wait():
        _ask(host, port, HEALTH, "GET", "/health", None, "")
        time.sleep(EVERY_S)


def _look(host: str, port: int) -> None:
    count = 0
    while ASKING.wait():
        count += 1
        mark = b"----hostile-probe"
        picture = png(48 + count % 64, 48 + count // 64 % 64)
        parts = [
            b'--%s\r\ncontent-disposition: form-data; name="question"\r\n\r\nwhat is this?\r\n' % mark,
            b'--%s\r\ncontent-disposition: form-data; name="image"; filename="a.png"\r\n\r\n' % mark,
            picture,
            b"\r\n--%s--\r\n" % mark,
        ]
        kind = f"multipart/form-data; boundary={mark.decode()}"
        _ask(host, port, PICTURE, "POST", "/v1/tasks/vqa", b"".join(parts), kind)
        time.sleep(EVERY_S)


def take_priority() -> None:
    """Take a processor before others do, where that is allowed: ordinary clients have machines of their own.

    What is measured is then how long the server took, and not how long this process waited behind it. Linux shares
    processors among sessions before it looks at nice values, so the session goes first as well.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)
        Path("/proc/self/autogroup").write_text(str(PRIORITY))


def main() -> None:
    """Ask until stdin ends, with pauses where a line of it says so."""
    take_priority()
    ASKING.set()
    address = urlsplit(sys.argv[1])
    assert address.hostname is not None and address.port is not None
    for work in (_beat, _look):
        threading.Thread(target=work, args=(address.hostname, address.port), daemon=True).start()
    for line in sys.stdin:
        if line == "pause\n":
            ASKING.clear()
        else:
            ASKING.set()


if __name__ == "__main__":
    main()
