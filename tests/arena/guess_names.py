"""Guesses the names in duels of a running server.

`PYTHONPATH=.:tests python tests/arena/guess_names.py URL VOTES SEEN [DUELS] [SECONDS]`

Each duel is about a fresh scene, by turns vqa, caption and detect. A guess sees what the page sees before the vote, and
the names of all earlier duels, which are read from VOTES, the server's `gateway.arena`. SEEN keeps what was seen as
JSON lines: the same call goes on there. It ends after DUELS (400) of them, or SECONDS.
"""

import contextlib
import json
import math
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

import httpx
from name_guesser import SEATS, features, guess

from serve.client.evaluation import toys
from serve.client.evaluation.asker import form

TASKS = ("vqa", "caption", "detect")


def names_of(votes: Path, duel: str) -> list[str]:
    """Return the two models of a duel that is stored."""
    with contextlib.closing(sqlite3.connect(f"file:{votes}?mode=ro", uri=True)) as file:
        (seats,) = file.execute("SELECT left_seat, right_seat FROM duels WHERE id = ?", (duel,)).fetchall()
    return [json.loads(seat)["model"] for seat in seats]


def one_more(client: httpx.Client, at: int) -> tuple[dict[str, Any], str] | None:
    """Ask for a duel; return what is seen of it, and its id. None for one that is not shown."""
    task = TASKS[at % len(TASKS)]
    (item,) = toys.items(task, 1, 7_000_000 + at)
    picture = item.load()
    began = time.perf_counter()
    response = client.post(f"/v1/arena/duels/{task}", **form(picture, item.fields))
    seconds = time.perf_counter() - began
    if response.status_code != 200:
        return None
    return features(response, seconds), response.json()["id"]


def main(url: str, votes: Path, record: Path, count: int, limit_s: float) -> None:
    lines = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    end = time.monotonic() + limit_s
    with httpx.Client(base_url=url) as client, record.open("a") as out:
        served = [
            entry["id"] for entry in client.get("/v1/models").json()["data"] if entry["diptych"]["kind"] == "model"
        ]
        while len(lines) < count and time.monotonic() < end:
            at = lines[-1]["at"] + 1 if lines else 0
            while (duel_seen := one_more(client, at)) is None:
                at += 1
            seen, duel = duel_seen
            named = guess(seen, [(line["seen"], line["names"]) for line in lines], served)
            names = names_of(votes, duel)
            right = sum(named[seat] == name for seat, name in zip(SEATS, names, strict=True))
            lines.append({"at": at, "names": names, "right": right, "seen": seen})
            out.write(json.dumps(lines[-1]) + "\n")
            out.flush()
    seats = 2 * len(lines)
    chance = 1 / len(served)
    error = math.sqrt(seats * chance * (1 - chance))
    print(f"{sum(line['right'] for line in lines)} of {seats} seats named rightly, of {', '.join(served)}; ", end="")
    print(f"chance is {seats * chance:.0f}, its standard error {error:.1f}")


if __name__ == "__main__":
    main(
        sys.argv[1],
        Path(sys.argv[2]),
        Path(sys.argv[3]),
        int(sys.argv[4]) if len(sys.argv) > 4 else 400,
        float(sys.argv[5]) if len(sys.argv) > 5 else math.inf,
    )
