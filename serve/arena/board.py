"""The board of a task: its models' ratings with intervals, beside length and latency, and cautions about its votes."""

import dataclasses
import itertools
import math
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from serve.arena.ratings import Array, Fit, Outcomes, chances, fit_strengths
from serve.arena.votes import Verdict

CENTRE = 1000
POINTS = 400 / math.log(10)
"""Rating points for a strength of 1: 400 points more are odds of ten to one, as Elo's."""
LEVEL = 0.95
"""Probability that all intervals of a board together hold the true ratings."""
FEW = 30
"""Duels below which a model's rating says little."""
BEATS = NormalDist().inv_cdf(0.975)
"""Standard errors above half the points with which one model beats another, for a circle of such."""
SEATED = NormalDist().inv_cdf(0.995)
"""Standard errors by which a seat may win more than the ratings explain before that is called a bias."""
MOST = 0.9
"""Share of votes from which on a board is one voter's."""
WIDER = 1.3
"""Factor on the intervals from which on a few voters, who vote alike, decide a board."""
UNEVEN = 4
"""Times the duels of one model that another has, from which on a board is uneven."""
MOST_NAMED = 5
"""Models that a sentence names."""

PLACES = {"left": 1.0, "right": 0.0}
"""Points of the left model; half a one for a tie, and for two bad answers."""

Voters = Literal["all", "people", "judges"]


@dataclass(frozen=True)
class VoteCount:
    """Votes that agree in all but time, with the sums over them of what their answers took."""

    left: str
    right: str
    choice: Verdict
    voter: str
    judge: bool
    family: str
    own_family: int
    votes: int
    lengths: tuple[float, float] = (0, 0)
    tokens: tuple[float, float] = (0, 0)
    latencies_ms: tuple[float, float] = (0, 0)


class ModelRating(BaseModel):
    """A model's row. low, high: the interval; with LEVEL all of a board's intervals hold the true ratings.

    rank: 1 and the number of models whose whole interval is above this one's. group: models of different groups have
    met no common opponent. unanswered: duels that were not shown, because the model gave no answer. length: mean
    characters of an answer, or boxes.
    """

    model_config = ConfigDict(protected_namespaces=())

    model: str
    rating: float
    low: float
    high: float
    rank: int
    group: int
    duels: int
    wins: int
    losses: int
    ties: int
    both_bad: int
    unanswered: int
    length: float
    tokens: float
    latency_ms: float


class JudgeRecord(BaseModel):
    """A judge's votes. abstained: where it contradicted itself with the seats swapped; they count for nothing.

    own_family: votes in which exactly one of the two models was of the judge's own family.
    """

    model_config = ConfigDict(protected_namespaces=())

    model: str
    family: str
    votes: int
    abstained: int
    own_family: int


class Caution(BaseModel):
    """A reason not to take the board at its word."""

    code: Literal[
        "thin",
        "disconnected",
        "unbounded",
        "intransitive",
        "all_ties",
        "one_voter",
        "few_voters",
        "judges_only",
        "own_family",
        "seat_bias",
        "unsettled",
        "ties_decide",
        "uneven",
    ]
    message: str


class ArenaBoard(BaseModel):
    """The ratings of a task's models, best first."""

    object: Literal["diptych.board"] = "diptych.board"
    task: str
    voters: Voters
    duels: int = Field(description="Votes that count. A judge's votes count beside a person's on the same duel.")
    level: float = LEVEL
    models: list[ModelRating]
    judges: list[JudgeRecord]
    cautions: list[Caution]


def compute_board(
    task: str, counts: Iterable[VoteCount], unanswered: dict[str, int] | None = None, voters: Voters = "all"
) -> ArenaBoard:
    """Return a task's board. unanswered: by model."""
    every = [count for count in counts if voters == "all" or count.judge == (voters == "judges")]
    rated = [count for count in every if count.choice != "abstained"]
    tally = _Tally(rated)
    fitted = fit_strengths(len(tally.names), tally.outcomes)
    return ArenaBoard(
        task=task,
        voters=voters,
        duels=sum(count.votes for count in rated),
        models=_rows(tally, fitted, unanswered or {}),
        judges=_judges(every),
        cautions=list(_cautions(tally, fitted, rated)),
    )


class _Tally:
    """The votes of each pair. wins, ties: [M, M], in the order of `names`."""

    def __init__(self, counts: Sequence[VoteCount]) -> None:
        self.names = sorted({name for count in counts for name in (count.left, count.right)})
        at = {name: index for index, name in enumerate(self.names)}
        voters = {voter: index for index, voter in enumerate(dict.fromkeys(map(_voter, counts)))}
        size = len(self.names)
        self.wins: Array = np.zeros((size, size))
        self.ties: Array = np.zeros((size, size))
        self.both_bad: Array = np.zeros(size)
        self.sums: Array = np.zeros((size, 3))
        for count in counts:
            left, right = at[count.left], at[count.right]
            if count.choice == "left":
                self.wins[left, right] += count.votes
            elif count.choice == "right":
                self.wins[right, left] += count.votes
            else:
                self.ties[left, right] += count.votes
                self.ties[right, left] += count.votes
                if count.choice == "both_bad":
                    self.both_bad[[left, right]] += count.votes
            for seat, index in enumerate((left, right)):
                self.sums[index] += (count.lengths[seat], count.tokens[seat], count.latencies_ms[seat])
        self.duels: Array = self.wins + self.wins.T + self.ties
        self.duels_each: Array = self.duels.sum(axis=1)
        self.outcomes = Outcomes(
            left=np.array([at[count.left] for count in counts], int),
            right=np.array([at[count.right] for count in counts], int),
            points=np.array([PLACES.get(count.choice, 0.5) for count in counts], float),
            votes=np.array([count.votes for count in counts], float),
            voters=np.array([voters[_voter(count)] if count.voter else -1 for count in counts], int),
        )

    def decided(self) -> Outcomes:
        """Return the outcomes without ties."""
        chosen = self.outcomes.points != 0.5
        return Outcomes(*(getattr(self.outcomes, field.name)[chosen] for field in dataclasses.fields(Outcomes)))


def _voter(count: VoteCount) -> tuple[bool, str]:
    return count.judge, count.voter


def _rows(tally: _Tally, fitted: Fit, unanswered: dict[str, int]) -> list[ModelRating]:
    size = len(tally.names)
    if not size:
        return []
    reach = NormalDist().inv_cdf(1 - (1 - LEVEL) / (2 * size))  # Bonferroni's: for all of them together
    ratings = CENTRE + POINTS * fitted.strengths
    widths = POINTS * reach * np.sqrt(np.maximum(np.diag(fitted.covariance), 0))
    lows, highs = ratings - widths, ratings + widths
    rows = []
    for at, name in enumerate(tally.names):
        same = [other for other in range(size) if fitted.groups[other] == fitted.groups[at]]
        duels = tally.duels_each[at]
        rows.append(
            ModelRating(
                model=name,
                rating=ratings[at],
                low=lows[at],
                high=highs[at],
                rank=1 + sum(bool(lows[other] > highs[at]) for other in same),
                group=sorted(set(fitted.groups)).index(fitted.groups[at]),
                duels=int(duels),
                wins=int(tally.wins[at].sum()),
                losses=int(tally.wins[:, at].sum()),
                ties=int(tally.ties[at].sum() - tally.both_bad[at]),
                both_bad=int(tally.both_bad[at]),
                unanswered=unanswered.get(name, 0),
                length=tally.sums[at, 0] / duels,
                tokens=tally.sums[at, 1] / duels,
                latency_ms=tally.sums[at, 2] / duels,
            )
        )
    return sorted(rows, key=lambda row: (row.group, -row.rating, row.model))


def _judges(counts: Sequence[VoteCount]) -> list[JudgeRecord]:
    names = sorted({count.voter for count in counts if count.judge})
    records = []
    for name in names:
        own = [count for count in counts if count.judge and count.voter == name]
        rated = [count for count in own if count.choice != "abstained"]
        records.append(
            JudgeRecord(
                model=name,
                family=own[-1].family,
                votes=sum(count.votes for count in rated),
                abstained=sum(count.votes for count in own if count.choice == "abstained"),
                own_family=sum(count.votes for count in rated if count.own_family == 1),
            )
        )
    return records


def _cautions(tally: _Tally, fitted: Fit, counts: Sequence[VoteCount]) -> Iterable[Caution]:
    names, total = tally.names, sum(count.votes for count in counts)
    thin = [name for name, duels in zip(names, tally.duels_each, strict=True) if duels < FEW]
    if thin or not names:
        about = _listed(thin) if thin else "No model"
        least = f"fewer than {FEW} duels" if thin else "any duels"
        yield Caution(code="thin", message=f"{about} {'has' if len(thin) < 2 else 'have'} {least}.")
    if len(set(fitted.groups)) > 1:
        groups = [
            _listed([name for name, other in zip(names, fitted.groups, strict=True) if other == group])
            for group in sorted(set(fitted.groups))
        ]
        message = f"These groups have never met, so their ratings cannot be compared: {' | '.join(groups)}."
        yield Caution(code="disconnected", message=message)
    if names and not tally.wins.any():
        yield Caution(code="all_ties", message="Every vote is a tie: nothing tells these models apart.")
    elif not fitted.bounded:
        message = "Some models have only won or only lost against others, so half a tie was added to each pair."
        yield Caution(code="unbounded", message=message)
    yield from _order_cautions(tally, fitted)
    if names and tally.duels_each.max() > UNEVEN * tally.duels_each.min():
        most, least = (names[int(pick(tally.duels_each))] for pick in (np.argmax, np.argmin))
        message = f"{most} has had {int(tally.duels_each.max())} duels, {least} only {int(tally.duels_each.min())}."
        yield Caution(code="uneven", message=message)
    if circle := _circle(tally):
        path = ", ".join(
            f"{names[first]} beats {names[other]}" for first, other in zip(circle, circle[1:], strict=False)
        )
        yield Caution(code="intransitive", message=f"No rating can say this: {path}.")
    yield from _voter_cautions(counts, total)
    if fitted.clustering > WIDER:
        message = f"Votes of the same voter are so alike that the intervals are {fitted.clustering:.1f} times as wide."
        yield Caution(code="few_voters", message=message)
    errors = tally.outcomes.points - chances(fitted.strengths)[tally.outcomes.left, tally.outcomes.right]
    surplus, spread = (float((tally.outcomes.votes * errors**power).sum()) for power in (1, 2))
    if abs(surplus) > SEATED * math.sqrt(spread):
        seat = "left" if surplus > 0 else "right"
        message = f"The {seat} answer won {abs(surplus):.0f} of {total} duels more than the models' ratings explain."
        yield Caution(code="seat_bias", message=message)


def _order_cautions(tally: _Tally, fitted: Fit) -> Iterable[Caution]:
    """Yield what is to be said about models that follow each other on the board."""
    order = sorted(range(len(tally.names)), key=lambda at: (fitted.groups[at], -fitted.strengths[at]))
    pairs = [
        (first, other)
        for first, other in zip(order, order[1:], strict=False)
        if fitted.groups[first] == fitted.groups[other]
    ]
    if not pairs:
        return
    reach = NormalDist().inv_cdf(1 - (1 - LEVEL) / (2 * len(pairs)))
    unsettled = [
        f"{tally.names[first]} and {tally.names[other]}"
        for first, other in pairs
        if _lead(fitted, first, other) < reach
    ]
    if unsettled:
        yield Caution(
            code="unsettled", message=f"The order is not settled between {'; '.join(unsettled[:MOST_NAMED])}."
        )
    without = fit_strengths(len(tally.names), tally.decided())
    if not without.bounded:
        return
    turned = [
        f"{tally.names[first]} and {tally.names[other]}"
        for first, other in itertools.combinations(order, 2)
        if fitted.groups[first] == fitted.groups[other] == without.groups[first] == without.groups[other]
        and _lead(fitted, first, other) > BEATS
        and _lead(without, other, first) > BEATS
    ]
    if turned:
        message = (
            f"Ties as half a win decide the order of {'; '.join(turned[:MOST_NAMED])}: without ties it is the reverse."
        )
        yield Caution(code="ties_decide", message=message)


def _lead(fitted: Fit, first: int, other: int) -> float:
    """Return by how many standard errors one model is stronger than another."""
    covariance = fitted.covariance
    variance = covariance[first, first] + covariance[other, other] - 2 * covariance[first, other]
    return float((fitted.strengths[first] - fitted.strengths[other]) / math.sqrt(max(variance, 1e-12)))


def _voter_cautions(counts: Sequence[VoteCount], total: int) -> Iterable[Caution]:
    judged = sum(count.votes for count in counts if count.judge)
    if total and judged == total:
        yield Caution(code="judges_only", message="No person has voted: every vote is a model's.")
    voters = Counter[tuple[bool, str]]()
    for count in counts:
        voters[count.judge, count.voter] += count.votes
    for (judge, voter), votes in voters.most_common(1):
        if votes >= MOST * total and voter:  # people without keys have no name to be told apart by
            who = f"the judge {voter}" if judge else voter
            yield Caution(code="one_voter", message=f"{votes} of {total} votes are by {who}.")
    own = sorted({count.voter for count in counts if count.judge and count.own_family == 1})
    if own:
        votes = sum(count.votes for count in counts if count.judge and count.own_family == 1)
        message = (
            f"{_listed(own)} judged a model of the judge's own family against another in {votes} of {total} votes."
        )
        yield Caution(code="own_family", message=message)


def _circle(tally: _Tally) -> list[int] | None:
    """Return a shortest circle of models of which each beats the next, its first one repeated at the end."""
    with np.errstate(invalid="ignore", divide="ignore"):
        share = (tally.wins + tally.ties / 2) / tally.duels
        square = (tally.wins + tally.ties / 4) / tally.duels  # the mean of a duel's squared points
        error = np.sqrt(np.maximum(square - share**2, 0) / tally.duels)
        beats = (share - 0.5 > BEATS * error) & (tally.duels >= 6)  # of six wins in a row 2 % are chance
    circles = (_path_back(beats, start) for start in range(len(beats)))
    return min((circle for circle in circles if circle is not None), key=len, default=None)


def _path_back(edges: np.ndarray[tuple[int, int], np.dtype[np.bool_]], start: int) -> list[int] | None:
    """Return a shortest path along the edges from a model to itself; None where there is none."""
    paths, seen = deque([[start]]), set[int]()
    while paths:
        path = paths.popleft()
        for after in map(int, np.flatnonzero(edges[path[-1]])):
            if after == start:
                return [*path, start]
            if after not in seen:
                seen.add(after)
                paths.append([*path, after])
    return None


def _listed(names: Sequence[str]) -> str:
    """Name models in a sentence, at most MOST_NAMED of them."""
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
