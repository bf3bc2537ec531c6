"""`diptych arena`: duels in the terminal, the board, a judge's votes on a folder, export and import of votes."""

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from serve.client.asking import read_input, text_fields
from serve.client.board import PLACES, answer_text, first_field, pixels_of, placed_items, plain
from serve.client.http_client import Failure, Misuse, Server

Json = dict[str, Any]
CHOICES = {"l": "left", "r": "right", "t": "tie", "b": "both_bad"}
PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".gif"}
MODEL_WIDTH = 12
"""Columns of the terminal that a model's name has at least; longer ones are folded."""
TRIES = 3
"""Duels that are asked for before a picture is given up: one may have a model that gives no answer."""


def duel(options: argparse.Namespace) -> int:
    """Show two answers without names, read the choice from the terminal, and print the names."""
    task = options.task or ("vqa" if options.question else "caption")
    fields = text_fields(task, options.question, None, _usage(task, options.image))
    picture, console = read_input(options.image), Console()
    with Server(options.server, options.api_key) as server:
        given = _duel(server, task, picture, fields, options.judge)
        table = Table(expand=True)
        for seat in ("left", "right"):
            table.add_column(seat, ratio=1, overflow="fold")
        table.add_row(*(plain("\n".join(_lines(given[seat]["result"]))) for seat in ("left", "right")))
        console.print(table)
        vote = server.post("/v1/arena/votes", {"duel": given["id"], "choice": options.choice or _read_choice()})
    for seat in ("left", "right"):
        about = vote[seat]
        console.print(plain(f"{seat}: {about['model']}, {about['latency_ms']:.0f} ms, {about['tokens']} tokens"))
    for judge in vote["judges"]:
        own = ", where one model is of the judge's own family" * (judge["own_family"] == 1)
        console.print(plain(f"judge {judge['model']} ({judge['family']}): {judge['choice']}{own}"))
    return 0


def judge(options: argparse.Namespace) -> int:
    """Let a model vote on a duel about each picture of a folder; print the board of judges."""
    fields = text_fields(options.task, options.question, None, _usage(options.task, "FOLDER"))
    pictures = sorted(path for path in options.folder.rglob("*") if path.suffix.lower() in PICTURES)
    if not pictures:
        raise Misuse(f"{options.folder} has no PNG, JPEG, WEBP or GIF pictures.")
    missed = 0
    with Server(options.server, options.api_key) as server:
        for path in pictures:
            try:
                _duel(server, options.task, path.read_bytes(), fields, options.judge)
            except Failure as failure:
                missed += 1
                print(f"{path}: {failure}", file=sys.stderr)
        if missed == len(pictures):
            return 1
        _print_board(server.get(f"/v1/arena/board?task={options.task}&voters=judges"))
    return 0


def board(options: argparse.Namespace) -> int:
    """Print a task's board: the server's, or that of a file of votes, SQLite or JSON lines."""
    if options.votes is None:
        with Server(options.server, options.api_key) as server:
            given = server.get(f"/v1/arena/board?task={options.task}&voters={options.voters}")
    else:
        from serve.arena.board import compute_board
        from serve.arena.store import count_votes, is_database

        if is_database(options.votes):
            with _opened(options.votes) as file:
                computed = file.board(options.task, options.voters)
        else:
            votes = [vote for vote in _lines_of(options.votes) if vote.task == options.task]
            computed = compute_board(options.task, count_votes(votes), voters=options.voters)
        given = computed.model_dump()
    if options.json:
        print(json.dumps(given, indent=2))
    else:
        _print_board(given)
    return 0


def export_votes(options: argparse.Namespace) -> int:
    """Print a file's votes as JSON lines."""
    if not options.file.is_file():
        raise Failure(f"{options.file}: there is no such file.")
    with _opened(options.file) as file:
        for vote in file.votes():
            print(vote.model_dump_json())
    return 0


def import_votes(options: argparse.Namespace) -> int:
    """Add the votes of JSON lines to a file, each once. A server may use it at the same time."""
    votes = list(_lines_of(options.votes))
    with _opened(options.file) as file:
        outcome = file.add_votes(votes)
    print(f"{outcome.added} votes added, {outcome.known} were there.")
    if outcome.different:
        print(f"{outcome.different} have the id of another vote, and were left out.", file=sys.stderr)
    return 1 if outcome.different else 0


def _duel(server: Server, task: str, picture: bytes | str, fields: Json, judge_name: str | None) -> Json:
    for left in reversed(range(TRIES)):
        try:
            return server.duel(task, picture, fields, judge_name)
        except Failure as failure:
            if "Ask again" not in str(failure) or not left:
                raise
    raise AssertionError("the last try returns or raises")


def _usage(task: str, image: str) -> Callable[[str, str], str]:
    return lambda field, words: f"diptych arena duel {image} {words} --task {task}"


def _lines(result: Json) -> list[str]:
    """Format an answer as lines: of a duel it is a text, or boxes or points without scores."""
    if PLACES.isdisjoint(result):
        return [answer_text(first_field(result)[1])]
    return [f"{item['label']}  {' '.join(map(str, pixels_of(item)))}" for item in placed_items(result)] or [
        "nothing found"
    ]


def _read_choice() -> str:
    while True:
        try:
            word = input("l left, r right, t tie, b both bad: ").strip().lower()
        except EOFError:
            raise Failure("No vote was given.") from None
        if word in CHOICES:
            return CHOICES[word]


def _print_board(given: Json) -> None:
    console = Console()
    table = Table(box=SIMPLE_HEAD, padding=0)
    counts = {"duels": "duels", "won": "wins", "lost": "losses", "tied": "ties", "bad": "both_bad"}
    if any(row["unanswered"] for row in given["models"]):
        counts["silent"] = "unanswered"
    narrowest = min(MODEL_WIDTH, max((len(row["model"]) for row in given["models"]), default=0))
    for name in ("rank", "model", "rating", "interval", *counts, "length", "ms"):
        if name == "model":
            table.add_column(name, overflow="fold", min_width=narrowest)
        else:
            table.add_column(name, justify="right", no_wrap=True)
    for row in given["models"]:
        figures = [row[name] for name in counts.values()]
        interval = f"{row['low']:.0f}..{row['high']:.0f}"
        table.add_row(
            str(row["rank"]), plain(row["model"]), f"{row['rating']:.0f}", interval, *map(str, figures),
            f"{row['length']:.0f}", f"{row['latency_ms']:.0f}",
        )  # fmt: skip
    console.print(table)
    about = f"{given['task']}: {given['duels']} votes ({given['voters']}); a tie is half a win. "
    console.print(plain(f"{about}All intervals together hold with {given['level']:.0%}."), soft_wrap=True)
    for record in given["judges"]:
        message = (
            f"judge {record['model']} ({record['family']}): {record['votes']} votes, abstained {record['abstained']}"
        )
        console.print(plain(message), soft_wrap=True)
    for caution in given["cautions"]:
        console.print(plain(f"{caution['code']}: {caution['message']}", "yellow"), soft_wrap=True)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a file of votes. Raises Failure where that fails."""
    import sqlite3

    from serve.arena.store import VoteFile

    try:
        file = VoteFile(path)
    except OSError as error:
        raise Failure(str(error)) from None
    try:
        yield file
    except sqlite3.Error as error:
        raise Failure(f"{path} cannot be read or written now: {error}.") from None
    finally:
        file.close()


def _lines_of(path: Path) -> Iterator[Any]:
    from serve.arena.store import read_votes

    try:
        with path.open(encoding="utf-8") as lines:
            yield from read_votes(lines)
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}.") from None
    except ValueError as error:
        raise Failure(f"{path}, {error}") from None
