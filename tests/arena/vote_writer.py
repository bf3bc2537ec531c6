"""Votes in a loop on the duels of a file, each vote sent twice: a process for tests to kill.

`python tests/arena/vote_writer.py FILE FIRST`: prints the number of each vote that was acknowledged.
"""

import itertools
import sys
from pathlib import Path

from serve.arena.store import VoteFile
from serve.arena.votes import Choice, Seat

CHOICES: tuple[Choice, ...] = ("left", "right", "tie", "both_bad")
SEATS = [Seat(model=name, length=3, tokens=2, latency_ms=12.5) for name in ("a", "b")]


def main(path: Path, first: int) -> None:
    file = VoteFile(path)
    for number in itertools.count(first):
        file.add_duel(f"duel-{number}", "vqa", *SEATS)
        for _ in range(2):
            file.vote(f"duel-{number}", CHOICES[number % 4])
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
