"""The file of votes: once each, in spite of kill -9, of several processes and of clients who ask twice."""

import asyncio
import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from vote_writer import CHOICES, SEATS

from serve.arena import store as store_module
from serve.arena.store import VoteFile, VoteStore, read_votes
from serve.errors import Conflict, NotFound, Overloaded, Unavailable

WRITER = Path(__file__).with_name("vote_writer.py")
VOTES = 5_000


@pytest.fixture
def file(tmp_path: Path) -> VoteFile:
    return VoteFile(tmp_path / "votes.db")


class Writer:
    """A process that votes, and the numbers of its votes that were acknowledged."""

    def __init__(self, path: Path, first: int) -> None:
        self.out = path.with_name(f"{first}.txt")
        with self.out.open("w") as out:
            self._process = subprocess.Popen([sys.executable, str(WRITER), str(path), str(first)], stdout=out)

    @property
    def writes(self) -> bool:
        return self.out.stat().st_size > 0

    def kill(self) -> set[int]:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        return {int(line) for line in self.out.read_text().splitlines(keepends=True) if line.endswith("\n")}


@pytest.mark.slow
def test_votes_outlive_killed_processes_once_each(tmp_path: Path) -> None:
    """Let two processes write at once; kill one that writes, and start another in its place, again and again."""
    path, chance = tmp_path / "votes.db", random.Random(1)
    VoteFile(path).close()
    counting = sqlite3.connect(path)
    writers = [Writer(path, 0), Writer(path, 1_000_000)]
    acknowledged: set[int] = set()
    killed = 0
    while counting.execute("SELECT count(*) FROM votes").fetchone()[0] < VOTES:
        time.sleep(chance.random() / 2)
        if all(writer.writes for writer in writers):
            acknowledged |= writers.pop(0).kill()
            killed += 1
            writers.append(Writer(path, (killed + 1) * 1_000_000))
    for writer in writers:
        acknowledged |= writer.kill()
        killed += 1
    votes = list(VoteFile(path).votes())
    numbers = [int(vote.id.removeprefix("duel-")) for vote in votes]
    assert counting.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    counting.close()
    assert len(numbers) == len(set(numbers)) >= VOTES
    assert acknowledged <= set(numbers)
    assert len(set(numbers) - acknowledged) <= killed  # each killed process may have had one vote to acknowledge
    assert all(vote.choice == CHOICES[number % 4] for vote, number in zip(votes, numbers, strict=True))


def test_vote_that_is_repeated_counts_once(file: VoteFile) -> None:
    file.add_duel("duel-1", "vqa", *SEATS)
    first = file.vote("duel-1", "left", "alice")
    assert file.vote("duel-1", "left", "bob") == first and first.voter == "alice"
    with pytest.raises(Conflict, match="has its vote, left"):
        file.vote("duel-1", "right")
    assert list(file.votes()) == [first]


def test_other_process_takes_the_vote(tmp_path: Path, file: VoteFile) -> None:
    file.add_duel("duel-1", "vqa", *SEATS)
    other = VoteFile(tmp_path / "votes.db")
    assert other.vote("duel-1", "tie") == file.vote("duel-1", "tie")
    assert file.board("vqa").duels == other.board("vqa").duels == 1


def test_unknown_and_expired_duels_are_refused(file: VoteFile, monkeypatch: pytest.MonkeyPatch) -> None:
    file.add_duel("duel-1", "vqa", *SEATS)
    monkeypatch.setattr(store_module, "EXPIRY_S", -1.0)
    for duel in ("duel-1", "duel-2"):
        with pytest.raises(NotFound, match="no such duel"):
            file.vote(duel, "left")


def test_oldest_duels_are_dropped_beyond_the_limit(file: VoteFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MAX_PENDING", 3)
    for number in range(5):
        file.add_duel(f"duel-{number}", "vqa", *SEATS)
    with pytest.raises(NotFound):
        file.vote("duel-1", "left")
    assert file.vote("duel-2", "left").choice == "left"


def test_exported_votes_are_imported_once(tmp_path: Path, file: VoteFile) -> None:
    for number, choice in enumerate(CHOICES):
        file.add_duel(f"duel-{number}", "vqa", *SEATS)
        file.vote(f"duel-{number}", choice)
    lines = [vote.model_dump_json() for vote in file.votes()]
    other = VoteFile(tmp_path / "other.db")
    assert other.add_votes(read_votes(lines)).added == 4
    changed = lines[0].replace('"choice":"left"', '"choice":"tie"')
    again = other.add_votes(read_votes([*lines, changed]))
    assert (again.added, again.known, again.different) == (0, 4, 1)
    assert other.board("vqa") == file.board("vqa")


def test_line_that_is_no_vote_is_named() -> None:
    with pytest.raises(ValueError, match="line 2 is not a vote"):
        list(read_votes(["", json.dumps({"id": "a b"})]))


SEAT = {"model": "a", "length": 1, "tokens": 1, "latency_ms": 1.0}
VOTE = {"id": "v", "task": "vqa", "left": SEAT, "right": SEAT, "choice": "left", "at": 0}


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (json.dumps(VOTE | {"id": "a b"}), "id: String should match pattern "),
        (
            json.dumps(VOTE | {"left": SEAT | {"tokens": -1}}),
            "left.tokens: Input should be greater than or equal to 0.",
        ),
        (json.dumps(VOTE | {"more": 1}), "more: Extra inputs are not permitted."),
        ("[]", "Input should be a valid dictionary"),
        ('{"id": ', "Expecting value"),
    ],
)
def test_fault_of_a_line_that_is_no_vote_is_named_by_its_field(line: str, fault: str) -> None:
    with pytest.raises(ValueError) as caught:
        list(read_votes([json.dumps(VOTE), line]))
    assert str(caught.value).startswith(f"line 2 is not a vote: {fault}") and "http" not in str(caught.value)


def test_file_of_another_program_is_refused(tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE things (name TEXT)")
    other.close()
    with pytest.raises(OSError, match="another program's"):
        VoteStore(tmp_path / "other.db")
    (tmp_path / "text.db").write_text("no database " * 100)
    with pytest.raises(OSError, match="cannot be used for votes"):
        VoteStore(tmp_path / "text.db")
    with pytest.raises(OSError, match="cannot be used for votes"):
        VoteStore(tmp_path / "missing" / "votes.db")


async def test_store_refuses_more_calls_than_may_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MAX_WAITING", 2)
    store = VoteStore(tmp_path / "votes.db")
    calls = [asyncio.ensure_future(store.call(lambda file: time.sleep(0.05))) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await store.call(lambda file: file.board("vqa"))
    await asyncio.gather(*calls)
    assert (await store.call(lambda file: file.board("vqa"))).duels == 0
    store.close()


def test_file_opens_while_another_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "LOCK_S", 0.01)
    VoteFile(tmp_path / "votes.db").close()
    other = sqlite3.connect(tmp_path / "votes.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    file = VoteFile(tmp_path / "votes.db")
    assert file.board("vqa").duels == 0
    file.close()
    other.close()


async def test_locked_file_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "LOCK_S", 0.01)
    store = VoteStore(tmp_path / "votes.db")
    other = sqlite3.connect(tmp_path / "votes.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="locked"):
        await store.call(lambda file: file.add_duel("duel-1", "vqa", *SEATS))
    other.execute("ROLLBACK")
    other.close()
    await store.call(lambda file: file.add_duel("duel-1", "vqa", *SEATS))
    store.close()
