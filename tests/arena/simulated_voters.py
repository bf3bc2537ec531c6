"""Simulates voters of models with planted strengths.

`python tests/arena/simulated_voters.py` prints how often a board of 2,000 of them holds all planted strengths.
"""

import sys
from collections.abc import Sequence

import numpy as np

from serve.arena.board import CENTRE, POINTS, ArenaBoard, VoteCount, compute_board

STRENGTHS = (0.9, 0.3, 0.1, -0.2, -1.1)
TIES = 0.2


def duels(
    strengths: Sequence[float], votes: int, seed: int, ties: float = TIES, left: float = 0.0
) -> list[tuple[int, int, str]]:
    """Draw votes (left model, right model, choice). ties: the share of ties. left: the left seat's advantage.

    A tie is as likely in every duel, and half a win each draws the chances to the middle. So that the planted strengths
    remain those that half wins measure, a win is drawn the likelier for it.
    """
    draw = np.random.default_rng(seed)
    drawn = []
    for _ in range(votes):
        first, other = (int(name) for name in draw.choice(len(strengths), 2, replace=False))
        chance = 1 / (1 + np.exp(strengths[other] - strengths[first] - left))
        tied = min(ties, 2 * chance, 2 * (1 - chance))
        point = draw.random()
        win = chance - tied / 2
        drawn.append((first, other, "left" if point < win else "tie" if point < win + tied else "right"))
    return drawn


def counts(drawn: Sequence[tuple[int, int, str]], names: Sequence[str], **same: object) -> list[VoteCount]:
    """Return the votes as counts of one."""
    given = {"voter": "", "judge": False, "family": "", "own_family": 0, "votes": 1} | same
    return [VoteCount(names[first], names[other], choice, **given) for first, other, choice in drawn]  # type: ignore[arg-type]


def letters(size: int) -> list[str]:
    return [chr(ord("a") + at) for at in range(size)]


def simulated_board(strengths: Sequence[float], votes: int, seed: int) -> ArenaBoard:
    return compute_board("vqa", counts(duels(strengths, votes, seed), letters(len(strengths))))


def holds(board: ArenaBoard, strengths: Sequence[float]) -> bool:
    """Return whether every planted strength is within its model's interval."""
    planted = dict(
        zip(letters(len(strengths)), CENTRE + POINTS * (np.array(strengths) - np.mean(strengths)), strict=True)
    )
    return all(row.low <= planted[row.model] <= row.high for row in board.models)


if __name__ == "__main__":
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    held = sum(holds(simulated_board(STRENGTHS, 2000, seed), STRENGTHS) for seed in range(repeats))
    print(f"{held} of {repeats} boards of 2,000 voters hold all {len(STRENGTHS)} planted strengths in their intervals")
