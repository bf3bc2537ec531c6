"""Answers as JSON lines, one per item, in a file that a killed run can continue, or on stdout.

A line is written and flushed in one piece, so that a killed process loses at most the line that it was writing. The
file is synced to disk every SYNC_S seconds: a power cut costs no more than those.
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Protocol

from serve.client.http_client import Failure, Misuse
from serve.client.storage.names import NameSet

Json = dict[str, Any]
SYNC_S = 5.0
COPIED = 2**20


class Lines(Protocol):
    """A destination of answers. done: the items that have an answer there already."""

    done: NameSet

    def add(self, line: Json, picture: bytes | str | None = None) -> None:
        """Keep a line. picture: what it is about, for a destination that keeps pictures, too."""

    def close(self, *, whole: bool = False) -> None:
        """Write what is still held. whole: every item was asked about."""


class Kept:
    """Lines in memory or on stdout, which a later run cannot continue."""

    def __init__(self, out: IO[str] | None = None) -> None:
        self.done = NameSet()
        self.lines: list[Json] = []
        self._out = out

    def add(self, line: Json, picture: bytes | str | None = None) -> None:
        if self._out is None:
            self.lines.append(line)
        else:
            self._out.write(written(line))
            self._out.flush()

    def close(self, *, whole: bool = False) -> None:
        pass


class Record:
    """Lines in a file, locked against other processes.

    key: the field that names a line's item, the first of every line. same: raises Failure or Misuse for a line that
    answers another question than this run's. An incomplete last line, and lines with an error, are dropped, so that
    their items are asked again. Raises Failure for a file that is not such a record, or is in use; Misuse for a pipe.
    """

    def __init__(self, path: Path, key: str, same: Callable[[Json], None]) -> None:
        self.path, self.key, self._same = path, key, same
        self.done = NameSet()
        with contextlib.ExitStack() as held:  # the locks last as long as the files are open
            held.enter_context(self._open_locked())
            kept, dropped = self._read()
            if dropped:
                self._rewrite(kept, held)
            self._file = held.enter_context(open(path, "ab"))
            self._held = held.pop_all()
        self._synced = time.monotonic()

    def add(self, line: Json, picture: bytes | str | None = None) -> None:
        """Append a line. Raises Failure if it cannot be written."""
        try:
            self._file.write(written(line).encode())
            self._file.flush()
            if time.monotonic() - self._synced > SYNC_S:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
        except OSError as error:
            raise self._unwritten(error) from None
        self.done.add(line[self.key])

    def close(self, *, whole: bool = False) -> None:
        with contextlib.suppress(OSError):  # `add` has reported a full disk
            os.fsync(self._file.fileno())
        with contextlib.suppress(OSError):
            self._held.close()

    def _open_locked(self) -> IO[bytes]:
        if self.path.exists() and not self.path.is_file():  # reading a pipe would block
            raise Misuse(f"{self.path} is no file. Without --out answers go to stdout.")
        try:
            file = open(self.path, "ab")  # noqa: SIM115 (lives as long as the record)
        except OSError as error:
            raise self._unwritten(error) from None
        try:
            return _lock(file, self.path)
        except Failure:
            file.close()
            raise

    def _read(self) -> tuple[list[tuple[int, int]], bool]:
        """Return (begin, end) of the runs of lines to keep, in bytes, and whether there are others."""
        kept: list[tuple[int, int]] = []
        dropped, at = False, 0
        for line, body in parse_lines(self.path, self.key):
            begin, at = at, at + len(line)
            if body is None or "error" in body or body[self.key] in self.done:
                dropped = True
                continue
            self._same(body)
            self.done.add(body[self.key])
            if kept and kept[-1][1] == begin:
                begin = kept.pop()[0]
            kept.append((begin, at))
        return kept, dropped

    def _rewrite(self, kept: list[tuple[int, int]], held: contextlib.ExitStack) -> None:
        """Keep these ranges of the file only: write them to a new file and move it into place."""
        new_path = self.path.with_name(f".{self.path.name}.new")  # no other process writes it: the record is locked
        try:
            with open(self.path, "rb") as old:
                new = held.enter_context(open(new_path, "wb"))  # noqa: SIM115 (its lock lasts as long as the record)
                _lock(new, self.path)
                os.fchmod(new.fileno(), os.fstat(old.fileno()).st_mode & 0o777)
                for begin, end in kept:
                    old.seek(begin)
                    while begin < end:
                        begin += new.write(old.read(min(COPIED, end - begin)))
                new.flush()
                os.fsync(new.fileno())
                os.replace(new_path, self.path)
        except OSError as error:
            raise self._unwritten(error) from None

    def _unwritten(self, error: OSError) -> Failure:
        return Failure(f"{self.path} was not written: {error.strerror or error}.")


def parse_lines(path: Path, key: str) -> Iterator[tuple[bytes, Json | None]]:
    """Yield each line and its JSON, None for an incomplete last line. Raises Failure for text that is no record."""
    start = f'{{"{key}": '.encode()
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            body = _json(line) if line.endswith(b"\n") else None
            ours = isinstance(body, dict) and isinstance(body.get(key), str) and "task" in body
            if not ours and (line.endswith(b"\n") or not start.startswith(line[: len(start)])):
                raise Failure(f"{path}, line {number}: this is not a record of answers; it is left as it is.")
            yield line, body if ours else None


def read_lines(path: Path, key: str) -> list[Json]:
    """Return the whole lines of a record, with errors too, and of two about one item the later. Raises Failure."""
    try:
        bodies = {body[key]: body for _, body in parse_lines(path, key) if body is not None}
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}.") from None
    return list(bodies.values())


def differs(path: Path, name: str, was: object, now: object) -> Misuse:
    """Return the error for a record that answers another question, whose `name` was `was` and is `now`."""
    there, here = (text if len(text := str(value)) <= 80 else f"{text[:79]}…" for value in (was, now))
    return Misuse(f"{path} holds answers to another question ({name}: {there} there, {here} here): give another --out.")


def written(line: Json) -> str:
    """Return a line as JSON text in ASCII, so that no file name and no reply can break it."""
    return json.dumps(line) + "\n"


def _json(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _lock(file: IO[bytes], path: Path) -> IO[bytes]:
    """Lock the file against other processes until it is closed, and return it. Raises Failure if it is locked."""
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise Failure(f"{path} is being written by another diptych.") from None
    return file
