"""Writes a line of JSON for each POST request to a file, which is rotated. Keys and pictures are never in it.

A thread writes. Where it cannot keep up, or the disk is full, lines are dropped and counted: no request waits for it.
"""

import errno
import fcntl
import logging
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from pydantic import BaseModel, ConfigDict, Field

log = logging.getLogger(__name__)

MAX_WAITING = 16 * 2**20
"""Bytes that may wait for the thread."""
GATHER_S = 0.1
"""Seconds for which the thread lets lines gather, to write them at once."""
COMPLAIN_S = 60.0
"""Seconds between two complaints about a file that cannot be written."""


class RequestLogArgs(BaseModel):
    """Settings of the log: its file, and whether it has contents."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: Path = Field(
        description="The file, on the gateway's machine; gateways of a machine share it. Its owner alone may read it."
    )
    contents: bool = Field(
        default=False,
        description="Log what was asked and what each model wrote, too, and of pictures `b2sum -l 160`.",
    )
    max_mb: float = Field(default=100, gt=0, description="MiB after which a new file is begun: FILE becomes FILE.1.")
    files: int = Field(default=5, ge=1, le=1000, description="Files that are kept; older ones are removed.")


class RequestLog:
    """The log. Raises OSError where the file cannot be written."""

    def __init__(self, args: RequestLogArgs) -> None:
        self.args = args
        self._encoder = msgspec.json.Encoder()
        self._lock = threading.Lock()
        self._waiting: list[bytes] = []
        self._waiting_bytes = self._dropped = 0
        self._arrived, self._closed = threading.Event(), threading.Event()
        self._complained_at = -COMPLAIN_S
        self._append([])
        self._thread = threading.Thread(target=self._run, name="request-log", daemon=True)
        self._thread.start()

    def write(self, record: Mapping[str, Any]) -> None:
        """Add a line, or drop it where too many wait, or the log is closed."""
        line = self._encoder.encode(record) + b"\n"
        with self._lock:
            if self._closed.is_set() or self._waiting_bytes + len(line) > MAX_WAITING:
                self._dropped += 1
                return
            self._waiting.append(line)
            self._waiting_bytes += len(line)
        self._arrived.set()

    def dropped(self) -> int:
        """Return the number of lines that were dropped since the last call."""
        with self._lock:
            count, self._dropped = self._dropped, 0
        return count

    def close(self) -> None:
        """Write what waits, and stop."""
        self._closed.set()
        self._arrived.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.is_set():
            self._arrived.wait()
            self._closed.wait(GATHER_S)
            self._arrived.clear()
            self._write_waiting()
        self._write_waiting()

    def _write_waiting(self) -> None:
        with self._lock:
            lines, self._waiting, self._waiting_bytes = self._waiting, [], 0
        if not lines:
            return
        try:
            self._append(lines)
        except OSError as error:
            with self._lock:
                self._dropped += len(lines)
            if time.monotonic() - self._complained_at > COMPLAIN_S:
                self._complained_at = time.monotonic()
                log.error("requests cannot be logged in %s: %s", self.args.file, error.strerror)

    def _append(self, lines: list[bytes]) -> None:
        """Append lines, and begin a new file where this one is full. Gateways of a machine take turns by a lock."""
        file = self.args.file
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            data = b"".join(lines)
            with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "wb", buffering=0) as output:
                before = os.fstat(output.fileno()).st_size
                if output.write(data) < len(data):  # a part of a line would spoil the next one, too
                    output.truncate(before)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if file.stat().st_size >= self.args.max_mb * 2**20:
                self._rotate()
        finally:
            os.close(folder)

    def _rotate(self) -> None:
        """Rename FILE to FILE.1, that to FILE.2, and so on; the last is lost. With a single one, begin it anew."""
        names = [self.args.file, *(self._numbered(number) for number in range(1, self.args.files))]
        for older, newer in zip(names[:0:-1], names[-2::-1], strict=True):
            if newer.exists():
                newer.replace(older)
        self.args.file.unlink(missing_ok=True)

    def _numbered(self, number: int) -> Path:
        return self.args.file.with_name(f"{self.args.file.name}.{number}")
