"""Keeps the tokens of keys in an SQLite file, by day, which several processes of a machine may share.

A row is what one gateway has counted of a key on a day, which only grows: a report that comes twice, or late, changes
nothing. The journal is a write-ahead log: what was reported outlives the process. After a power cut the last reports
may be missing.
"""

import asyncio
import sqlite3
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

LOCK_S = 5.0
"""Seconds to wait for another process that writes."""
FORMAT = 1
"""The file's `user_version`."""
KEPT_MONTHS = 13

_TABLE = """
CREATE TABLE IF NOT EXISTS tokens (
    day TEXT NOT NULL, key TEXT NOT NULL, gateway TEXT NOT NULL, tokens INTEGER NOT NULL,
    PRIMARY KEY (key, day, gateway)
) WITHOUT ROWID
"""
_SET = """
INSERT INTO tokens VALUES (?, ?, ?, ?)
ON CONFLICT (key, day, gateway) DO UPDATE SET tokens = max(tokens, excluded.tokens)
"""
_SUMS = """
SELECT coalesce(sum(tokens) FILTER (WHERE day = ?), 0), coalesce(sum(tokens), 0)
FROM tokens WHERE key = ? AND day BETWEEN ? AND ?
"""


class UsageFile:
    """The file, used by one thread. Raises OSError where it cannot be opened or is not one of ours."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._thread = ThreadPoolExecutor(1, "usage")
        self._day = ""
        try:
            self._file = self._thread.submit(_opened, path).result()
        except BaseException:
            self._thread.shutdown()
            raise

    def close(self) -> None:
        """Close the file, once what was begun is written."""
        self._thread.submit(self._file.close)
        self._thread.shutdown()

    async def report(
        self, gateway: str, counts: Mapping[tuple[str, str], int], names: Collection[str], today: str
    ) -> dict[str, tuple[int, int]]:
        """Set a gateway's tokens by day and key; return those of the named keys, of today and of this month.

        Raises OSError where the file cannot be written.
        """
        call = (gateway, dict(counts), tuple(names), today)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._report, *call)
        except sqlite3.Error as error:
            raise OSError(f"{self.path}: {error}") from None

    def _report(
        self, gateway: str, counts: Mapping[tuple[str, str], int], names: Collection[str], today: str
    ) -> dict[str, tuple[int, int]]:
        with self._file:
            if counts:
                self._file.execute("BEGIN IMMEDIATE")
                self._file.executemany(_SET, [(day, key, gateway, tokens) for (day, key), tokens in counts.items()])
            if today != self._day:
                self._day = today
                self._tidy()
            return {
                name: self._file.execute(_SUMS, (today, name, f"{today[:7]}-01", today)).fetchone() for name in names
            }

    def _tidy(self) -> None:
        """Drop all but the last months with tokens. A clock that was set wrong for a while adds one, and drops none."""
        newest = "SELECT DISTINCT substr(day, 1, 7) AS month FROM tokens ORDER BY month DESC LIMIT ?"
        self._file.execute(f"DELETE FROM tokens WHERE day < (SELECT min(month) FROM ({newest}))", (KEPT_MONTHS,))


def _opened(path: Path) -> sqlite3.Connection:
    try:
        file = sqlite3.connect(path, timeout=LOCK_S, isolation_level=None)
        file.execute("PRAGMA journal_mode = WAL")
        file.execute("PRAGMA synchronous = NORMAL")
        (version,) = file.execute("PRAGMA user_version").fetchone()
        (tables,) = file.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if version != FORMAT and (version or tables):
            raise OSError(f"{path} is another program's, or another version's: give a file of its own.")
        if version != FORMAT:  # so that a process that writes keeps no other from opening it
            file.execute(_TABLE)
            file.execute(f"PRAGMA user_version = {FORMAT}")
    except sqlite3.Error as error:
        raise OSError(f"{path} cannot be used for the tokens of keys: {error}.") from None
    return file
