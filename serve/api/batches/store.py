"""Keeps the files and batches of each key in a folder: an SQLite file about them, and their contents beside it.

The gateways of a machine may share the folder. A batch's output is written to its final place as it grows, and is
listed as a file once the batch has ended.
"""

import contextlib
import json
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from serve.errors import Conflict, NotFound, TooLarge, TooMany

LOCK_S = 5.0
"""Seconds to wait for another process that writes."""
FORMAT = 1
"""The file's `user_version`."""
BLOCK = 4096
"""Bytes that a file or a batch takes at least of what a key may keep: an empty one has a row."""
MAX_UNFINISHED = 100
"""Batches of a key that have not ended; more are refused."""
ORPHAN_S = 86_400.0
"""Seconds after which a content that no file has is removed: its upload, or its batch, was cut off."""
BatchStatus = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]
ENDED = ("failed", "completed", "expired", "cancelled")

_TABLES = """
CREATE TABLE IF NOT EXISTS files (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, at INTEGER NOT NULL,
    expires INTEGER NOT NULL, size INTEGER NOT NULL, name TEXT NOT NULL, purpose TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS files_owner ON files (owner);
CREATE TABLE IF NOT EXISTS batches (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, at INTEGER NOT NULL,
    ended INTEGER NOT NULL, input TEXT NOT NULL, object TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS batches_owner ON batches (owner, ended);
"""


class FileObject(BaseModel):
    """OpenAI's file object."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    status_details: None = None


class LineError(BaseModel):
    """A fault of a batch's input."""

    code: str
    line: int | None
    message: str
    param: str | None = None


class LineErrors(BaseModel):
    object: Literal["list"] = "list"
    data: list[LineError]


class RequestCounts(BaseModel):
    total: int = 0
    completed: int = 0
    failed: int = 0


class BatchObject(BaseModel):
    """OpenAI's batch object."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    errors: LineErrors | None = None
    input_file_id: str
    completion_window: str
    status: BatchStatus = "validating"
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts = RequestCounts()
    metadata: dict[str, Any] | None = Field(default=None)

    def enter(self, status: BatchStatus) -> None:
        """Take a status, and note when."""
        self.status = status
        if status != "validating":
            setattr(self, f"{status}_at", int(time.time()))


@dataclass(frozen=True)
class Outputs:
    """The contents that a batch writes, by their ids: of answers, and of requests without one."""

    output: str
    error: str

    @classmethod
    def of(cls, batch: str) -> "Outputs":
        name = batch.removeprefix("batch_")
        return cls(f"file-{name}-output", f"file-{name}-error")


class BatchStore:
    """The folder. Its methods block: call them in a thread. They raise OSError where the folder cannot be used.

    days: after which a file is removed, and a batch that has ended. max_mb: of all files and batches of a key, in MiB.
    max_lines: of a batch.
    """

    def __init__(self, folder: Path, days: float, max_mb: float, max_lines: int) -> None:
        self.folder, self.days, self.max_bytes, self.max_lines = folder, days, int(max_mb * 2**20), max_lines
        self.contents = folder / "files"
        folder.mkdir(0o700, parents=True, exist_ok=True)
        self.contents.mkdir(exist_ok=True)
        with self._opened() as file:
            (version,) = file.execute("PRAGMA user_version").fetchone()
            (tables,) = file.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if version != FORMAT and (version or tables):
                raise OSError(f"{folder} is another program's, or another version's: give a folder of its own.")
            if version == FORMAT:  # so that a process that writes keeps no other from opening it
                return
            file.execute("PRAGMA journal_mode = WAL")
            file.executescript(_TABLES)
            file.execute(f"PRAGMA user_version = {FORMAT}")

    def path(self, file_id: str) -> Path:
        """Return the path of a file's content."""
        return self.contents / file_id

    def add_file(self, owner: str, name: str, purpose: str, content: bytes) -> FileObject:
        """Keep a file. Raises TooLarge where the key's files are too many."""
        file_id = f"file-{secrets.token_hex(12)}"
        path = self.path(file_id)
        with self._writing() as file:
            self._check_room(file, owner, len(content), "file")
            try:
                with path.open("wb") as out:
                    out.write(content)
                    out.flush()
                    os.fsync(out.fileno())
            except OSError:
                path.unlink(missing_ok=True)
                raise
            self._insert(file, owner, file_id, name, purpose, len(content))
        return self.file(owner, file_id)

    def file(self, owner: str, file_id: str) -> FileObject:
        """Return a key's file. Raises NotFound."""
        rows = self._files("owner = ? AND id = ?", owner, file_id[:200])
        if not rows:
            raise _no_file(file_id)
        return rows[0]

    def content(self, owner: str, file_id: str) -> Path:
        """Return the path of a key's file's content. Raises NotFound, also where it was removed by other means."""
        path = self.path(self.file(owner, file_id).id)
        if not path.is_file():
            raise _no_file(file_id)
        return path

    def files(
        self, owner: str, purpose: str | None, after: str | None, limit: int, newest_first: bool
    ) -> tuple[list[FileObject], bool]:
        """Return a key's files, and whether there are more. after: the last id of the page before."""
        number = self._number("files", owner, after)
        sign, order = ("<", "DESC") if newest_first else (">", "ASC")
        where, values = ["owner = ?"], [owner]
        if purpose is not None:
            where.append("purpose = ?")
            values.append(purpose)
        if number is not None:
            where.append(f"number {sign} {number}")
        found_files = self._files(f"{' AND '.join(where)} ORDER BY number {order} LIMIT {limit + 1}", *values)
        return found_files[:limit], len(found_files) > limit

    def delete_file(self, owner: str, file_id: str) -> None:
        """Remove a key's file. Raises NotFound, and Conflict where a batch that has not ended reads it."""
        self.file(owner, file_id)
        with self._writing() as file:
            row = file.execute("SELECT id FROM batches WHERE input = ? AND NOT ended", (file_id,)).fetchone()
            if row is not None:
                raise Conflict(f"The batch {row[0]} reads this file: cancel it first.", param="file_id")
            file.execute("DELETE FROM files WHERE id = ?", (file_id,))
        self.path(file_id).unlink(missing_ok=True)

    def add_batch(
        self, owner: str, endpoint: str, input_file: str, window_s: float, metadata: dict[str, Any] | None
    ) -> BatchObject:
        """Begin a batch. Raises NotFound for its file, TooMany where too many of the key's have not ended, TooLarge."""
        now = int(time.time())
        batch = BatchObject(
            id=f"batch_{secrets.token_hex(12)}",
            endpoint=endpoint,
            input_file_id=input_file,
            completion_window=f"{window_s / 3600:g}h",
            created_at=now,
            expires_at=now + int(window_s),
            metadata=metadata,
        )
        with self._writing() as file:
            try:
                self.file(owner, input_file)
            except NotFound as error:
                raise NotFound(error.message, param="input_file_id", code=error.code) from None
            self._check_room(file, owner, BLOCK, "input_file_id")
            values = (owner,)
            (waiting,) = file.execute("SELECT count(*) FROM batches WHERE owner = ? AND NOT ended", values).fetchone()
            if waiting >= MAX_UNFINISHED:
                raise TooMany(f"{waiting} batches of this key have not ended yet.", code="batch_limit")
            file.execute(
                "INSERT INTO batches (id, owner, at, ended, input, object) VALUES (?, ?, ?, 0, ?, ?)",
                (batch.id, owner, now, input_file, batch.model_dump_json()),
            )
        return batch

    def batch(self, owner: str, batch_id: str) -> BatchObject:
        """Return a key's batch. Raises NotFound."""
        with self._opened() as file:
            row = file.execute(
                "SELECT object FROM batches WHERE owner = ? AND id = ?", (owner, batch_id[:200])
            ).fetchone()
        if row is None:
            raise NotFound(f"There is no batch {batch_id[:200]!r}.", param="batch_id", code="batch_not_found")
        return BatchObject.model_validate_json(row[0])

    def batches(self, owner: str, after: str | None, limit: int) -> tuple[list[BatchObject], bool]:
        """Return a key's batches, newest first, and whether there are more."""
        number = self._number("batches", owner, after)
        older = "" if number is None else f"AND number < {number}"
        with self._opened() as file:
            rows = file.execute(
                f"SELECT object FROM batches WHERE owner = ? {older} ORDER BY number DESC LIMIT {limit + 1}", (owner,)
            ).fetchall()
        return [BatchObject.model_validate_json(row[0]) for row in rows[:limit]], len(rows) > limit

    def unfinished(self) -> list[tuple[str, BatchObject]]:
        """Return (owner, batch) of each key's oldest batch that has not ended, and of every cancelled one, by age."""
        with self._opened() as file:
            rows = file.execute(
                "SELECT owner, object FROM batches WHERE NOT ended AND "
                "(number IN (SELECT min(number) FROM batches WHERE NOT ended GROUP BY owner) "
                "OR json_extract(object, '$.status') = 'cancelling') ORDER BY number"
            ).fetchall()
        return [(owner, BatchObject.model_validate_json(text)) for owner, text in rows]

    def change(self, owner: str, batch_id: str, change: Callable[[BatchObject], None]) -> BatchObject:
        """Change a batch, and return it. Where it ends thereby, its outputs become files. Raises NotFound."""
        with self._writing() as file:
            batch = self.batch(owner, batch_id)
            was_ended = batch.status in ENDED
            change(batch)
            ended = batch.status in ENDED
            if ended and not was_ended:
                outputs = Outputs.of(batch.id)
                batch.output_file_id = self._list_output(file, owner, outputs.output)
                batch.error_file_id = self._list_output(file, owner, outputs.error)
            file.execute(
                "UPDATE batches SET ended = ?, object = ? WHERE id = ?", (ended, batch.model_dump_json(), batch.id)
            )
        return batch

    def room(self, owner: str) -> int:
        """Return how many bytes a key's files may still grow by."""
        with self._opened() as file:
            return max(0, self.max_bytes - self._used(file, owner))

    def remove_old(self) -> None:
        """Remove what is past its time: files that no unfinished batch reads, batches that have ended, and orphans."""
        now = time.time()
        with self._writing() as file:
            file.execute(
                "DELETE FROM files WHERE expires < ? AND id NOT IN (SELECT input FROM batches WHERE NOT ended)", (now,)
            )
            file.execute("DELETE FROM batches WHERE ended AND at < ?", (now - self.days * 86_400,))
            kept = {row[0] for row in file.execute("SELECT id FROM files")}
            for (batch_id,) in file.execute("SELECT id FROM batches WHERE NOT ended"):
                kept |= {Outputs.of(batch_id).output, Outputs.of(batch_id).error}
            for path in self.contents.iterdir():
                if path.name not in kept and path.stat().st_mtime < now - ORPHAN_S:
                    path.unlink(missing_ok=True)

    def _used(self, file: sqlite3.Connection, owner: str) -> int:
        (used,) = file.execute(
            "SELECT (SELECT coalesce(sum(max(size, ?1)), 0) FROM files WHERE owner = ?2) + "
            "(SELECT coalesce(sum(max(length(CAST(object AS BLOB)), ?1)), 0) FROM batches WHERE owner = ?2)",
            (BLOCK, owner),
        ).fetchone()
        return int(used)

    def _check_room(self, file: sqlite3.Connection, owner: str, size: int, param: str) -> None:
        """Raise TooLarge where a key may not keep so many bytes more."""
        if self._used(file, owner) + max(size, BLOCK) > self.max_bytes:
            most = f"{self.max_bytes / 2**20:,.0f} MiB"
            raise TooLarge(
                f"The key's files and batches would be larger than {most} together: delete files.",
                param=param,
                code="storage_full",
            )

    def _list_output(self, file: sqlite3.Connection, owner: str, file_id: str) -> str | None:
        """Make a batch's output a file. Return its id; None where it is empty."""
        path = self.path(file_id)
        size = path.stat().st_size if path.exists() else 0
        if not size:
            path.unlink(missing_ok=True)
            return None
        self._insert(file, owner, file_id, f"{file_id.removeprefix('file-')}.jsonl", "batch_output", size)
        return file_id

    def _insert(self, file: sqlite3.Connection, owner: str, file_id: str, name: str, purpose: str, size: int) -> None:
        now = int(time.time())
        file.execute(
            "INSERT INTO files (id, owner, at, expires, size, name, purpose) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (file_id, owner, now, now + int(self.days * 86_400), size, name, purpose),
        )

    def _files(self, where: str, *values: Any) -> list[FileObject]:
        with self._opened() as file:
            rows = file.execute(f"SELECT id, size, at, expires, name, purpose FROM files WHERE {where}", values)
            return [
                FileObject(
                    id=row[0], bytes=row[1], created_at=row[2], expires_at=row[3], filename=row[4], purpose=row[5]
                )
                for row in rows
            ]

    def _number(self, table: str, owner: str, after: str | None) -> int | None:
        """Return the row's number of the id after which a page begins. Raises NotFound."""
        if after is None:
            return None
        with self._opened() as file:
            row = file.execute(
                f"SELECT number FROM {table} WHERE owner = ? AND id = ?", (owner, after[:200])
            ).fetchone()
        if row is None:
            raise NotFound(f"There is nothing with the id {after[:200]!r}.", param="after")
        return int(row[0])

    @contextlib.contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        path = self.folder / "batches.db"
        try:
            with contextlib.closing(sqlite3.connect(path, timeout=LOCK_S, isolation_level=None)) as file:
                yield file
        except sqlite3.Error as error:
            raise OSError(f"{self.folder} cannot be used for batches: {error}.") from None

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Yield a connection in a transaction, which is undone where the block raises."""
        with self._opened() as file:
            file.execute("BEGIN IMMEDIATE")
            try:
                yield file
            except BaseException:
                file.execute("ROLLBACK")
                raise
            file.execute("COMMIT")


def _no_file(file_id: str) -> NotFound:
    return NotFound(f"There is no file {file_id[:200]!r}.", param="file_id", code="file_not_found")


def line_id(batch: str, number: int) -> str:
    """Return the id of a batch's line in its outputs. number: of the line in the input, from 0."""
    return f"batch_req_{batch.removeprefix('batch_')}_{number}"


def answered_lines(path: Path) -> set[int]:
    """Return the numbers of the lines that an output holds, and cut off a line that was not written to its end."""
    numbers: set[int] = set()
    if not path.exists():
        return numbers
    with path.open("r+b") as file:
        whole = 0
        for line in file:
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            numbers.add(int(json.loads(line)["id"].rpartition("_")[2]))
        file.truncate(whole)
    return numbers
