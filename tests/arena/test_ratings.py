"""Ratings equal a kept library's, hold planted strengths, and planted defects of a board are reported."""

from typing import Any

import numpy as np
import pytest
from simulated_voters import STRENGTHS, counts, duels, holds, letters, simulated_board

from serve.arena.board import VoteCount, compute_board
from serve.arena.ratings import Outcomes, fit_strengths

CHOIX = {
    (1, 5, 400): [-0.033884456, 0.451292414, 0.135270543, -1.172724744, 0.620046242],
    (2, 12, 3000): [
        0.07566795, -0.316962365, -0.27628018, -1.449147177, 0.958962974, 0.638958633,
        -0.197305599, 0.619678858, 0.102514761, -0.495454245, 0.561421209, -0.222054819,
    ],
}  # fmt: skip
"""Strengths by choix 0.4.1, by (seed, models, duels): `ilsr_pairwise`, alpha 0, of `drawn_outcomes`."""


def drawn_outcomes(seed: int, models: int, votes: int) -> Outcomes:
    draw = np.random.default_rng(seed)
    strengths = draw.normal(0, 1, models)
    rows = []
    for _ in range(votes):
        first, other = draw.choice(models, 2, replace=False)
        chance, point = 1 / (1 + np.exp(strengths[other] - strengths[first])), draw.random()
        rows.append((first, other, 0.5 if draw.random() < 0.25 else float(point < chance)))
    left, right, points = map(np.array, zip(*rows, strict=True))
    return Outcomes(left, right, points, np.ones(votes), np.full(votes, -1))


@pytest.mark.parametrize(("seed", "models", "votes"), CHOIX)
def test_strengths_equal_those_of_choix(seed: int, models: int, votes: int) -> None:
    fitted = fit_strengths(models, drawn_outcomes(seed, models, votes))
    assert fitted.bounded
    assert np.abs(fitted.strengths - CHOIX[seed, models, votes]).max() < 1e-6


@pytest.mark.engine
@pytest.mark.parametrize("seed", range(5))
def test_strengths_equal_those_of_torchs_optimiser(seed: int) -> None:
    import torch

    outcomes = drawn_outcomes(seed, 8, 1000)
    points = torch.tensor(outcomes.points)
    strengths = torch.zeros(8, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [strengths], max_iter=1000, tolerance_grad=1e-12, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )

    def loss() -> Any:
        optimiser.zero_grad()
        gaps = strengths[outcomes.left] - strengths[outcomes.right]
        value = torch.nn.functional.binary_cross_entropy_with_logits(gaps, points)
        value.backward()
        return value

    optimiser.step(loss)
    other = strengths.detach().numpy()
    assert np.abs(fit_strengths(8, outcomes).strengths - (other - other.mean())).max() < 1e-6


@pytest.mark.slow
def test_intervals_hold_the_planted_strengths() -> None:
    """Twenty boards; NOTES.md has a thousand."""
    assert sum(holds(simulated_board(STRENGTHS, 2000, seed), STRENGTHS) for seed in range(20)) >= 18


def codes(votes: list[VoteCount]) -> set[str]:
    return {caution.code for caution in compute_board("vqa", votes).cautions}


def plain_board(votes: int = 6000, **given: Any) -> list[VoteCount]:
    strengths = np.linspace(1.2, -1.2, 6)
    return counts(duels(strengths, votes, 3, ties=0.1, **given), letters(6))


def one_way(left: str, right: str, votes: int = 50, **given: Any) -> VoteCount:
    same: Any = {"voter": "", "judge": False, "family": "", "own_family": 0} | given
    return VoteCount(left, right, "left", votes=votes, **same)


@pytest.mark.slow
def test_even_board_has_no_caution() -> None:
    assert codes(plain_board()) == set()


def test_board_without_votes_is_thin_and_empty() -> None:
    board = compute_board("vqa", [])
    assert (board.models, board.duels) == ([], 0) and {caution.code for caution in board.cautions} == {"thin"}


def test_thin_board_is_reported() -> None:
    assert codes(plain_board(60)) >= {"thin", "unsettled"}


def test_circle_is_reported_with_its_models() -> None:
    votes = [VoteCount(first, other, choice, "", False, "", 0, number)  # type: ignore[arg-type]
             for first, other in ("ab", "bc", "ca") for choice, number in (("left", 70), ("right", 30))]  # fmt: skip
    messages = {caution.code: caution.message for caution in compute_board("vqa", votes).cautions}
    assert messages["intransitive"] == "No rating can say this: a beats b, b beats c, c beats a."


@pytest.mark.slow
def test_groups_that_never_met_are_ranked_apart() -> None:
    votes = [count for count in plain_board() if (count.left in "abc") == (count.right in "abc")]
    board = compute_board("vqa", votes)
    assert {caution.code for caution in board.cautions} == {"disconnected"}
    assert [(row.model, row.group) for row in board.models] == [
        *((name, 0) for name in "abc"),
        *((name, 1) for name in "def"),
    ]
    assert [row.rank for row in board.models] == [1, 2, 3, 1, 2, 3]


def test_ties_alone_leave_ratings_equal_and_intervals_wide() -> None:
    votes = [VoteCount("a", "b", "tie", "", False, "", 0, 30), VoteCount("a", "b", "both_bad", "", False, "", 0, 20)]
    board = compute_board("vqa", votes)
    assert "all_ties" in {caution.code for caution in board.cautions}
    assert [(row.rating, row.rank, row.ties, row.both_bad) for row in board.models] == [(1000, 1, 30, 20)] * 2
    assert all(row.low < 950 and row.high > 1050 for row in board.models)


def test_model_that_only_wins_has_a_finite_rating_and_a_caution() -> None:
    board = compute_board("vqa", [one_way("a", "b"), one_way("b", "c")])
    assert "unbounded" in {caution.code for caution in board.cautions}
    assert [row.model for row in board.models] == ["a", "b", "c"] and board.models[0].rating < 3000


def test_votes_of_a_single_judge_are_reported_with_its_family() -> None:
    judge = {"voter": "toy-llava", "judge": True, "family": "Llava"}
    votes = [one_way("a", "b", **judge, own_family=1), one_way("b", "a", **judge)]
    votes.append(VoteCount("a", "b", "abstained", "toy-llava", True, "Llava", 0, 7))
    board = compute_board("vqa", votes)
    assert {caution.code for caution in board.cautions} >= {"judges_only", "one_voter", "own_family"}
    (record,) = board.judges
    assert (record.family, record.votes, record.abstained, record.own_family) == ("Llava", 100, 7, 50)
    assert board.duels == 100
    assert compute_board("vqa", votes, voters="people").duels == 0


def test_seat_that_wins_too_often_is_reported() -> None:
    assert codes(plain_board(left=0.5)) == {"seat_bias"}


def test_voter_with_a_firm_view_widens_the_intervals() -> None:
    votes = plain_board(2000)
    loud = [one_way("c", "b", 1, voter="loud") for _ in range(300)]
    named = compute_board("vqa", votes + loud)
    unnamed = compute_board("vqa", votes + [one_way("c", "b", 1) for _ in range(300)])
    assert "few_voters" in {caution.code for caution in named.cautions}
    assert "few_voters" not in {caution.code for caution in unnamed.cautions}
    assert max(row.high - row.low for row in named.models) > 1.3 * max(row.high - row.low for row in unnamed.models)


@pytest.mark.slow
def test_order_that_only_ties_decide_is_reported() -> None:
    votes = plain_board()
    hedged = [
        VoteCount(count.left, count.right, "tie" if "e" in (count.left, count.right) and at % 8 else count.choice,
                  "", False, "", 0, 1)
        for at, count in enumerate(votes)
    ]  # fmt: skip
    assert "ties_decide" in codes(hedged)


def test_model_with_few_of_the_duels_is_reported() -> None:
    votes = [count for at, count in enumerate(plain_board()) if "f" not in (count.left, count.right) or at % 10 == 0]
    assert "uneven" in codes(votes)
