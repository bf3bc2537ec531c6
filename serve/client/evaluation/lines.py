"""Answers as JSON lines, one an item, in a file that a killed run can go on with, or on stdout.

A line is written in one piece and handed to the system at once, so a killed process loses at most the line that it was
writing; every few seconds the file is also forced to the disk, which is what a power cut can cost.
"""

import contextlib
import fcntl
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Protocol

from serve.client.http_client import Failure, Misuse

Json = dict[str, Any]
SYNC_S = 5.0


class Lines(Protocol):
    """Where answers go."""

    done: set[str]

    def add(self, line: Json) -> None: ...

    def close(self) -> None: ...


class Kept:
    """Lines in memory or on stdout: nothing to go on with after a kill."""

    def __init__(self, out: IO[str] | None = None) -> None:
        self.done: set[str] = set()
        self.lines: list[Json] = []
        self._out = out

    def add(self, line: Json) -> None:
        if self._out is None:
            self.lines.append(line)
        else:
            self._out.write(written(line))
            self._out.flush()

    def close(self) -> None:
        pass


class Record:
    """Lines in a file. `done`: the items that have an answer there already.

    key: the field that names a line's item, the first of every line. same: raises Failure or Misuse for a line that
    answers another question than this run's. What a kill left half-written, and lines that hold an error in place of
    an answer, are dropped here and asked again. Raises Failure for a file that is not such a record, or is in use.
    """

    def __init__(self, path: Path, key: str, same: Callable[[Json], None]) -> None:
        self.path, self.key, self._same = path, key, same
        self.done: set[str] = set()
        with contextlib.ExitStack() as held:  # the locks last as long as the files are open
            held.enter_context(self._locked())
            kept, dropped = self._read()
            if dropped:
                self._rewrite(kept, held)
            self._file = held.enter_context(open(path, "ab"))
            self._held = held.pop_all()
        self._synced = time.monotonic()

    def add(self, line: Json) -> None:
        """One line more. Raises Failure where the disk does not take it."""
        try:
            self._file.write(written(line).encode())
            self._file.flush()
            if time.monotonic() - self._synced > SYNC_S:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
        except OSError as error:
            raise self._unwritten(error) from None
        self.done.add(line[self.key])

    def close(self) -> None:
        with contextlib.suppress(OSError):  # a full disk was told by `add`; here is nothing left to lose
            os.fsync(self._file.fileno())
        with contextlib.suppress(OSError):
            self._held.close()

    def _locked(self) -> IO[bytes]:
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
        """Where the good lines are (begin, end), and whether there is anything else."""
        kept, dropped, at = [], False, 0
        for line, body in parsed(self.path, self.key):
            begin, at = at, at + len(line)
            if body is None or "error" in body or body[self.key] in self.done:
                dropped = True
                continue
            self._same(body)
            self.done.add(body[self.key])
            kept.append((begin, at))
        return kept, dropped

    def _rewrite(self, kept: list[tuple[int, int]], held: contextlib.ExitStack) -> None:
        """Only these stretches of the file: written beside it and put in its place in one step."""
        beside = self.path.with_name(f".{self.path.name}.new")  # one a record: its lock is held
        try:
            with open(self.path, "rb") as old:
                made = held.enter_context(open(beside, "wb"))  # noqa: SIM115 (its lock lasts as long as the record)
                _lock(made, self.path)
                os.fchmod(made.fileno(), os.fstat(old.fileno()).st_mode & 0o777)
                for begin, end in kept:
                    old.seek(begin)
                    made.write(old.read(end - begin))
                made.flush()
                os.fsync(made.fileno())
                os.replace(beside, self.path)
        except OSError as error:
            raise self._unwritten(error) from None

    def _unwritten(self, error: OSError) -> Failure:
        return Failure(f"{self.path} was not written: {error.strerror or error}.")


def parsed(path: Path, key: str) -> Iterator[tuple[bytes, Json | None]]:
    """Every line and what it says; None for a last one that was cut short. Raises Failure for any other text."""
    start = f'{{"{key}": '.encode()
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            body = _json(line) if line.endswith(b"\n") else None
            ours = isinstance(body, dict) and isinstance(body.get(key), str) and "task" in body
            if not ours and (line.endswith(b"\n") or not start.startswith(line[: len(start)])):
                raise Failure(f"{path}, line {number}: this is not a record of answers; it is left as it is.")
            yield line, body if ours else None


def read(path: Path, key: str) -> list[Json]:
    """All whole lines of a record, those with errors too; of two about one item the later. Raises Failure."""
    try:
        found = {body[key]: body for _, body in parsed(path, key) if body is not None}
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}.") from None
    return list(found.values())


def opened(path: Path | None, key: str, same: Callable[[Json], None]) -> Lines:
    """The record at `path`, or stdout."""
    return Kept(sys.stdout) if path is None else Record(path, key, same)


def differs(path: Path, name: str, was: object, now: object) -> Misuse:
    """What is said of a record that answers another question."""
    there, here = (text if len(text := str(said)) <= 80 else f"{text[:79]}…" for said in (was, now))
    return Misuse(f"{path} holds answers to another question ({name}: {there} there, {here} here): give another --out.")


def written(line: Json) -> str:
    """A line as text: ASCII, so that no file name and no model's words can break it."""
    return json.dumps(line) + "\n"


def _json(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _lock(file: IO[bytes], path: Path) -> IO[bytes]:
    """The file, which nobody else can lock until it is closed."""
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise Failure(f"{path} is being written by another diptych.") from None
    return file
