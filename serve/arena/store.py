"""Keeps votes, and duels that wait for their vote, in one SQLite file that several processes of a machine may share.

The journal is a write-ahead log that is synced at each commit: a vote that was acknowledged outlives the process, and
a power cut. A vote has its duel's id as its key, so that one sent twice is counted once.
"""

import asyncio
import contextlib
import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from serve.arena.board import ArenaBoard, VoteCount, Voters, compute_board
from serve.arena.votes import Choice, Seat, Verdict, Vote
from serve.errors import Conflict, NotFound, Overloaded, Unavailable

T = TypeVar("T")

EXPIRY_S = 3600.0
"""Seconds in which a duel's vote may come."""
MAX_PENDING = 10_000
"""Duels that wait for their vote; beyond that the oldest are dropped."""
MAX_WAITING = 500
"""Calls that may wait for the file; more are refused."""
LOCK_S = 5.0
"""Seconds to wait for another process that writes."""
FORMAT = 1
"""The file's `user_version`."""

_TABLES = """
CREATE TABLE IF NOT EXISTS duels (
    id TEXT PRIMARY KEY, task TEXT NOT NULL, left_seat TEXT NOT NULL, right_seat TEXT NOT NULL, at REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS duels_at ON duels (at);
CREATE TABLE IF NOT EXISTS votes (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, task TEXT NOT NULL,
    left_model TEXT NOT NULL, left_length INTEGER NOT NULL, left_tokens INTEGER NOT NULL, left_latency_ms REAL NOT NULL,
    right_model TEXT NOT NULL, right_length INTEGER NOT NULL, right_tokens INTEGER NOT NULL,
    right_latency_ms REAL NOT NULL, choice TEXT NOT NULL, voter TEXT NOT NULL, judge INTEGER NOT NULL,
    family TEXT NOT NULL, own_family INTEGER NOT NULL, at REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS votes_task ON votes (task);
CREATE TABLE IF NOT EXISTS unanswered (
    task TEXT NOT NULL, model TEXT NOT NULL, duels INTEGER NOT NULL, PRIMARY KEY (task, model)
);
"""
_FIELDS = (
    "id, task, left_model, left_length, left_tokens, left_latency_ms, right_model, right_length, right_tokens, "
    "right_latency_ms, choice, voter, judge, family, own_family, at"
)
_COUNTS = """
SELECT left_model, right_model, choice, voter, judge, family, own_family, count(*), sum(left_length), sum(right_length),
    sum(left_tokens), sum(right_tokens), sum(left_latency_ms), sum(right_latency_ms)
FROM votes WHERE task = ? GROUP BY left_model, right_model, choice, voter, judge, family, own_family
"""


@dataclass(frozen=True)
class Imported:
    """The outcome of an import: votes that were added, that were there already, and that were there otherwise."""

    added: int
    known: int
    different: int


class VoteFile:
    """A connection to the file, for one thread. Its methods are transactions.

    Raises OSError where the file cannot be opened or is not one of ours.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = sqlite3.connect(path, timeout=LOCK_S, isolation_level=None)
            self._file.execute("PRAGMA journal_mode = WAL")
            self._file.execute("PRAGMA synchronous = FULL")
            (version,) = self._file.execute("PRAGMA user_version").fetchone()
            (tables,) = self._file.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if version != FORMAT and (version or tables):
                raise OSError(f"{path} is another program's, or another version's: give a file of its own.")
            if version == FORMAT:  # so that a process that writes keeps no other from opening it
                return
            with self._transaction():
                for statement in filter(str.strip, _TABLES.split(";")):
                    self._file.execute(statement)
                self._file.execute(f"PRAGMA user_version = {FORMAT}")
        except sqlite3.Error as error:
            raise OSError(f"{path} cannot be used for votes: {error}.") from None

    def close(self) -> None:
        self._file.close()

    def add_duel(self, duel: str, task: str, left: Seat, right: Seat, votes: Sequence[Vote] = ()) -> None:
        """Add a duel that waits for a person's vote, and the votes of judges, who have voted. Drop expired duels."""
        now = time.time()
        with self._transaction():
            self._file.execute("DELETE FROM duels WHERE at < ?", (now - EXPIRY_S,))
            seats = left.model_dump_json(), right.model_dump_json()
            self._file.execute("INSERT INTO duels VALUES (?, ?, ?, ?, ?)", (duel, task, *seats, now))
            self._file.execute(
                "DELETE FROM duels WHERE id IN (SELECT id FROM duels ORDER BY at DESC LIMIT -1 OFFSET ?)",
                (MAX_PENDING,),
            )
            for vote in votes:
                self._insert(vote)

    def vote(self, duel: str, choice: Choice, voter: str = "") -> Vote:
        """Return a person's vote on a duel, stored. A second one with the same choice changes nothing.

        Raises NotFound for an unknown or expired duel, Conflict where the duel has another vote.
        """
        with self._transaction():
            known = self._file.execute(f"SELECT {_FIELDS} FROM votes WHERE id = ? AND NOT judge", (duel,)).fetchone()
            if known is not None:
                return _same_choice(_vote(known), choice)
            row = self._file.execute(
                "SELECT task, left_seat, right_seat, at FROM duels WHERE id = ?", (duel,)
            ).fetchone()
            now = time.time()
            if row is None or row[3] < now - EXPIRY_S:
                message = f"There is no such duel, or it is older than {EXPIRY_S / 60:.0f} minutes."
                raise NotFound(message, param="duel", code="duel_not_found")
            left, right = Seat.model_validate_json(row[1]), Seat.model_validate_json(row[2])
            vote = Vote(id=duel, task=row[0], left=left, right=right, choice=choice, voter=voter, at=now)
            self._insert(vote)
            self._file.execute("DELETE FROM duels WHERE id = ?", (duel,))
        return vote

    def judge_votes(self, duel: str) -> list[Vote]:
        """Return the judges' votes on a duel."""
        rows = self._file.execute(
            f"SELECT {_FIELDS} FROM votes WHERE id > ? AND id < ? AND judge", (f"{duel}:", f"{duel};")
        )
        return [_vote(row) for row in rows]

    def add_unanswered(self, task: str, models: Iterable[str]) -> None:
        """Count a duel that was not shown for each model that gave no answer."""
        with self._transaction():
            self._file.executemany(
                "INSERT INTO unanswered VALUES (?, ?, 1) ON CONFLICT DO UPDATE SET duels = duels + 1",
                [(task, model) for model in models],
            )

    def add_votes(self, votes: Iterable[Vote]) -> Imported:
        """Add votes that another file has. Those whose id is known are left as they are here."""
        added = known = different = 0
        with self._transaction():
            for vote in votes:
                if self._insert(vote):
                    added += 1
                    continue
                here = self._file.execute(f"SELECT {_FIELDS} FROM votes WHERE id = ?", (vote.id,)).fetchone()
                if _vote(here) == vote:
                    known += 1
                else:
                    different += 1
        return Imported(added, known, different)

    def votes(self) -> Iterator[Vote]:
        """Yield all votes in the order in which they came."""
        for row in self._file.execute(f"SELECT {_FIELDS} FROM votes ORDER BY number"):
            yield _vote(row)

    def board(self, task: str, voters: Voters = "all") -> ArenaBoard:
        """Return the board of a task."""
        rows = self._file.execute(_COUNTS, (task,)).fetchall()
        missing = self._file.execute("SELECT model, duels FROM unanswered WHERE task = ?", (task,)).fetchall()
        return compute_board(task, map(_count, rows), dict(missing), voters)

    def tasks(self) -> list[str]:
        """Return the tasks that have votes."""
        return [task for (task,) in self._file.execute("SELECT DISTINCT task FROM votes ORDER BY task")]

    def _insert(self, vote: Vote) -> bool:
        """Insert a vote unless its id is known; return whether it was inserted."""
        seats = [(seat.model, seat.length, seat.tokens, seat.latency_ms) for seat in (vote.left, vote.right)]
        values = (
            vote.id, vote.task, *seats[0], *seats[1], vote.choice, vote.voter, vote.judge, vote.family,
            vote.own_family, vote.at,
        )  # fmt: skip
        marks = ", ".join("?" * len(values))
        cursor = self._file.execute(f"INSERT INTO votes ({_FIELDS}) VALUES ({marks}) ON CONFLICT DO NOTHING", values)
        return cursor.rowcount == 1

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._file.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._file.execute("ROLLBACK")
            raise
        self._file.execute("COMMIT")


class VoteStore:
    """A VoteFile in a thread of its own, so that no event loop waits for the disk or another process.

    Raises OSError where the file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._thread = ThreadPoolExecutor(1, "votes")
        self._waiting = 0
        try:
            self._file = self._thread.submit(VoteFile, path).result()
        except OSError:
            self._thread.shutdown()
            raise

    async def call(self, work: Callable[[VoteFile], T]) -> T:
        """Return `work(file)`, done by the thread.

        Raises what it raises, Overloaded where too many calls wait, Unavailable where the file cannot be used.
        """
        if self._waiting >= MAX_WAITING:
            raise Overloaded("Too many votes are waiting to be written.")
        self._waiting += 1
        try:
            done = asyncio.get_running_loop().run_in_executor(self._thread, work, self._file)
            done.add_done_callback(self._finished)
            return await asyncio.shield(done)  # a client that leaves takes no vote back
        except sqlite3.Error as error:
            raise Unavailable(f"The votes cannot be read or written now: {error}.", code="votes_unavailable") from None

    def close(self) -> None:
        """Close the file, once what waits is written."""
        self._thread.submit(self._file.close)
        self._thread.shutdown()

    def _finished(self, done: "asyncio.Future[T]") -> None:
        self._waiting -= 1
        if not done.cancelled():
            done.exception()  # where the client has left, nobody else looks at it


def _same_choice(vote: Vote, choice: Verdict) -> Vote:
    if vote.choice != choice:
        message = f"This duel has its vote, {vote.choice}: names are known, so it cannot be changed."
        raise Conflict(message, param="choice", code="already_voted")
    return vote


def _vote(row: Sequence[object]) -> Vote:
    """Return the vote of a row of _FIELDS."""
    names = ("model", "length", "tokens", "latency_ms")
    left, right = (dict(zip(names, row[begin : begin + 4], strict=True)) for begin in (2, 6))
    rest = dict(zip(("choice", "voter", "judge", "family", "own_family", "at"), row[10:], strict=True))
    return Vote.model_validate({"id": row[0], "task": row[1], "left": left, "right": right, **rest})


def _count(row: Sequence[object]) -> VoteCount:
    """Return the count of a row of _COUNTS."""
    left, right, choice, voter, judge, family, own_family, votes, *sums = row
    pairs = dict(zip(("lengths", "tokens", "latencies_ms"), zip(sums[::2], sums[1::2], strict=True), strict=True))
    return VoteCount(left, right, choice, voter, bool(judge), family, own_family, votes, **pairs)  # type: ignore[arg-type]


def is_database(path: Path) -> bool:
    """Return whether a file begins as SQLite's do."""
    try:
        with path.open("rb") as file:
            return file.read(16) == b"SQLite format 3\0"
    except OSError:
        return False


def read_votes(lines: Iterable[str]) -> Iterator[Vote]:
    """Parse votes, one a line. Raises ValueError naming the line that is none."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield Vote.model_validate(json.loads(line))
            except ValueError as error:
                raise ValueError(f"line {number} is not a vote: {_fault(error)[:200]}.") from None


def _fault(error: ValueError) -> str:
    """Return the field that is wrong, where it is one, and what is wrong with it."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False, include_input=False)[0]
    return ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))


def count_votes(votes: Iterable[Vote]) -> list[VoteCount]:
    """Return each vote as a count of one."""
    return [
        VoteCount(
            vote.left.model, vote.right.model, vote.choice, vote.voter, vote.judge, vote.family, vote.own_family, 1,
            (vote.left.length, vote.right.length), (vote.left.tokens, vote.right.tokens),
            (vote.left.latency_ms, vote.right.latency_ms),
        )
        for vote in votes
    ]  # fmt: skip
