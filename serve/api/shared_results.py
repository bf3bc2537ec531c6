"""Results that people share by an address, in one SQLite file: bounded in size, and gone after some days."""

import contextlib
import hashlib
import hmac
import secrets
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from serve.errors import Forbidden, NotFound

LOCK_S = 5.0
"""Seconds to wait for another process that writes."""
FORMAT = 2
"""The file's `user_version`. In 1 a result had neither a key's name nor a token."""
GONE = "There is no such result, or it was removed."
_TABLE = """
CREATE TABLE IF NOT EXISTS results (
    id TEXT PRIMARY KEY, at REAL NOT NULL, expires REAL NOT NULL, size INTEGER NOT NULL,
    answer BLOB NOT NULL, picture BLOB NOT NULL, card BLOB NOT NULL, key TEXT, token BLOB
)
"""


@dataclass(frozen=True)
class SharedResult:
    """A result as it is kept. answer: JSON. picture: WEBP. card: PNG, with the picture and the answers. expires: s."""

    answer: bytes
    picture: bytes
    card: bytes
    expires: float


@dataclass(frozen=True)
class Receipt:
    """The receipt for a shared result. token: deletes it; nobody can guess it, nor the id. expires: s."""

    id: str
    token: str
    expires: float


class ResultFile:
    """The file. Each call opens it, so that calls may come from any thread. Raises OSError where it is not ours."""

    def __init__(self, path: Path, days: float, max_mb: float) -> None:
        self.path, self.days, self.max_bytes = path, days, int(max_mb * 2**20)
        with self._opened() as file:
            (version,) = file.execute("PRAGMA user_version").fetchone()
            (tables,) = file.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if version not in (1, FORMAT) and (version or tables):
                raise OSError(f"{path} is another program's, or another version's: give a file of its own.")
            if version == FORMAT:  # so that a process that writes keeps no other from opening it
                return
            file.execute("PRAGMA journal_mode = WAL")
            file.execute("BEGIN IMMEDIATE")
            file.execute(_TABLE)
            if "token" not in {column for _, column, *_ in file.execute("PRAGMA table_info(results)")}:
                file.execute("ALTER TABLE results ADD COLUMN key TEXT")
                file.execute("ALTER TABLE results ADD COLUMN token BLOB")
            file.execute(f"PRAGMA user_version = {FORMAT}")
            file.execute("COMMIT")

    def add(self, answer: bytes, picture: bytes, card: bytes, key: str | None = None) -> Receipt:
        """Keep a result. The oldest make room. key: the name of the key that shared it."""
        now, result, token = time.time(), secrets.token_urlsafe(16), secrets.token_urlsafe(16)
        expires = now + self.days * 86_400
        size = len(answer) + len(picture) + len(card)
        with self._opened() as file:
            file.execute("BEGIN IMMEDIATE")
            file.execute("DELETE FROM results WHERE expires < ?", (now,))
            values = (result, now, expires, size, answer, picture, card, key, _digest(token))
            file.execute("INSERT INTO results VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
            file.execute(
                "DELETE FROM results WHERE id IN (SELECT id FROM (SELECT id, sum(size) OVER (ORDER BY at DESC, id) AS "
                "total FROM results) WHERE total > ?)",
                (self.max_bytes,),
            )
            file.execute("COMMIT")
        return Receipt(result, token, expires)

    def delete(self, result: str, key: str | None, token: str | None) -> None:
        """Remove a result for who has the key that shared it, or its token. Raises NotFound or Forbidden."""
        with self._opened() as file:
            row = file.execute("SELECT key, token FROM results WHERE id = ?", (result,)).fetchone()
            if row is None:
                raise NotFound(GONE, code="result_not_found")
            mine = key is not None and key == row[0]
            if not mine and not (token and row[1] and hmac.compare_digest(_digest(token), row[1])):
                raise Forbidden(
                    "A result is deleted with the key that shared it, or with its token: the header x-delete-token.",
                    param="x-delete-token",
                    code="not_yours",
                )
            file.execute("DELETE FROM results WHERE id = ?", (result,))

    def find(self, result: str) -> SharedResult:
        """Return a result. Raises NotFound."""
        with self._opened() as file:
            row = file.execute(
                "SELECT answer, picture, card, expires FROM results WHERE id = ? AND expires >= ?",
                (result, time.time()),
            ).fetchone()
        if row is None:
            raise NotFound(GONE, code="result_not_found")
        return SharedResult(*row)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        try:
            with contextlib.closing(sqlite3.connect(self.path, timeout=LOCK_S, isolation_level=None)) as file:
                yield file
        except sqlite3.Error as error:
            raise OSError(f"{self.path} cannot be used for results: {error}.") from None


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
