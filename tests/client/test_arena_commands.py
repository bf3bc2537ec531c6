"""`diptych arena` against a server on loopback, and its export and import of votes."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command import Ran, runner
from served import listening, picture, router

from serve.api.app import create_app
from serve.arena.presentation import present
from serve.arena.store import VoteStore
from serve.client import arena
from serve.engines.base import Prompt
from serve.engines.fake import FakeEngine
from serve.tasks import TASKS


def answer(prompt: Prompt) -> str:
    return "A" if "Two answers" in prompt.text else "red"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    monkeypatch.setenv("COLUMNS", "160")
    return runner(capsys)


@pytest.fixture
def votes(tmp_path: Path) -> Iterator[VoteStore]:
    store = VoteStore(tmp_path / "votes.db")
    yield store
    store.close()


@pytest.fixture
def url(votes: VoteStore) -> Iterator[str]:
    with listening(create_app(router(FakeEngine(answer), FakeEngine(answer)), votes=votes)) as address:
        yield address


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "red.png"
    path.write_bytes(picture())
    return path


@pytest.mark.slow
def test_duel_tells_names_after_the_vote(run: Callable[..., Ran], url: str, image: Path, monkeypatch: Any) -> None:
    answers = iter(["what?", "L"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(answers))
    ran = run("arena", "duel", image, "which colour?", "--server", url)
    assert ran.status == 0 and "toy-" not in ran.out.split("left: ")[0]
    assert ran.out.count("Red") == 2 and "toy-llava," in ran.out and "toy-paligemma," in ran.out
    board = json.loads(run("arena", "board", "--server", url, "--json").out)
    assert board["duels"] == 1 and {row["wins"] for row in board["models"]} == {0, 1}


@pytest.mark.parametrize(
    ("task", "result", "lines"),
    [
        ("classify", {"labels": [{"label": "cat", "score": 0.9}], "multiple": False}, ["Cat"]),
        ("classify", {"labels": [], "multiple": True}, ["None of them"]),
        ("count", {"count": 3, "by": "boxes"}, ["3"]),
        ("extract", {"data": {"a": 1}}, ['{"a": 1}']),
        ("vqa", {"answer": "a cat."}, ["A cat"]),
        ("detect", {"boxes": [{"label": "cat", "box": [1, 2, 30, 40], "score": 0.9}]}, ["cat  1 2 30 40"]),
        ("point", {"points": [], "size": [80, 100]}, ["nothing found"]),
    ],
)
def test_answer_of_a_duel_is_written_as_lines(task: str, result: dict[str, Any], lines: list[str]) -> None:
    reply = SimpleNamespace(result=TASKS[task].result.model_validate(result))
    answer = present(TASKS[task], reply, SimpleNamespace(width=100, height=80))  # type: ignore[arg-type]
    assert arena._lines(answer) == lines


def test_duel_about_labels_shows_both_answers(run: Callable[..., Ran], votes: VoteStore, image: Path) -> None:
    engines = [
        FakeEngine(lambda prompt, label=label: "yes" if label in prompt.text else "no") for label in ("cat", "dog")
    ]
    with listening(create_app(router(*engines), votes=votes)) as address:
        ran = run("arena", "duel", image, "cat; dog", "--task", "classify", "--choice", "tie", "--server", address)
    assert ran.status == 0, ran.err
    assert "Cat" in ran.out and "Dog" in ran.out


@pytest.mark.slow
def test_judge_that_prefers_a_seat_abstains(run: Callable[..., Ran], url: str, image: Path) -> None:
    ran = run("arena", "judge", image.parent, "--judge", "toy-llava", "--server", url)
    assert ran.status == 0 and "judge toy-llava (Llava): 0 votes, abstained 1" in ran.out


@pytest.mark.slow
def test_exported_votes_give_the_same_board(run: Callable[..., Ran], url: str, image: Path, tmp_path: Path) -> None:
    for choice in ("left", "tie", "both_bad"):
        assert run("arena", "duel", image, "--choice", choice, "--server", url).status == 0
    exported = run("arena", "export", tmp_path / "votes.db").out
    lines = tmp_path / "votes.jsonl"
    lines.write_text(exported)
    assert len(exported.splitlines()) == 3
    other = tmp_path / "other.db"
    assert "3 votes added, 0 were there" in run("arena", "import", other, lines).out
    assert "0 votes added, 3 were there" in run("arena", "import", other, lines).out
    boards = [
        json.loads(run("arena", "board", "--task", "caption", "--json", *source).out)
        for source in (("--server", url), ("--votes", other), ("--votes", lines))
    ]
    ratings = [
        [(row["model"], row["rating"], row["ties"], row["both_bad"]) for row in board["models"]] for board in boards
    ]
    assert ratings[0] == ratings[1] == ratings[2] and boards[0]["duels"] == 3
    table = run("arena", "board", "--task", "caption", "--votes", other).out
    assert "thin: toy-llava, toy-paligemma have fewer than 30 duels." in table
    assert all(
        max(map(len, table.splitlines()[:5])) <= 80 and f" {name} " in table for name in ("toy-llava", "toy-paligemma")
    )


def test_wrong_lines_are_refused_by_their_number(run: Callable[..., Ran], tmp_path: Path) -> None:
    lines = tmp_path / "votes.jsonl"
    lines.write_text('{"id": "x"}\n')
    ran = run("arena", "import", tmp_path / "votes.db", lines)
    assert ran.status == 1 and "line 1 is not a vote" in ran.err
    assert run("arena", "export", tmp_path / "missing.db").status == 1


def test_closed_arena_is_explained(run: Callable[..., Ran], image: Path) -> None:
    with listening(create_app(router())) as address:
        ran = run("arena", "duel", image, "--server", address)
        assert ran.status == 1 and "gateway.arena" in ran.err
