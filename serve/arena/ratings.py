"""Bradley-Terry strengths of models from their duels, ties counted as half a win for each (Bradley and Terry, 1952).

A strength is the logarithm of a model's odds: i wins against j with probability 1 / (1 + exp(s_j - s_i)).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]
Numbers = np.ndarray[Any, np.dtype[np.int64]]
MAX_STEPS = 100
TOLERANCE = 1e-11
"""Largest gradient at the maximum, in wins per duel."""
PRIOR = 0.25
"""Wins added to both sides of each pair that has met, where there is no finite maximum: together half a duel."""


@dataclass(frozen=True)
class Outcomes:
    """N groups of duels that ended alike.

    left, right: [N], numbers of models. points: [N], the left one's: 1, 0.5 or 0. votes: [N], duels of the group.
    voters: [N], numbers from 0 on; -1 where the voters are not known, and count as a new one for each duel.
    """

    left: Numbers
    right: Numbers
    points: Array
    votes: Array
    voters: Numbers

    def scores(self, size: int) -> Array:
        """Return the points [M, M] that the row's model won against the column's."""
        scores: Array = np.zeros((size, size))
        np.add.at(scores, (self.left, self.right), self.votes * self.points)
        np.add.at(scores, (self.right, self.left), self.votes * (1 - self.points))
        return scores


@dataclass(frozen=True)
class Fit:
    """Strengths of M models.

    strengths: [M], their mean 0 in each group. covariance: [M, M], of the strengths. groups: [M], equal numbers for
    models that are connected by duels; those of different groups cannot be compared. bounded: whether the likelihood
    has a maximum; where it has none, PRIOR was added. clustering: factor by which votes of the same voter, who votes
    alike, widen the covariance's standard errors.
    """

    strengths: Array
    covariance: Array
    groups: list[int]
    bounded: bool
    clustering: float


def fit_strengths(size: int, outcomes: Outcomes) -> Fit:
    """Return the strengths of maximum likelihood of `size` models."""
    scores = outcomes.scores(size)
    met = scores + scores.T > 0
    connected = reachable(met)
    bounded = bool((reachable(scores > 0) == connected).all())
    if not bounded:
        scores = scores + PRIOR * met
    strengths = _maximum(scores, connected)
    covariance, clustering = _covariance(scores, outcomes, strengths, bounded)
    return Fit(strengths, covariance, [int(np.argmax(row)) for row in connected], bounded, clustering)


def reachable(edges: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return which models each one reaches along edges [M, M], itself included."""
    reached: np.ndarray[Any, np.dtype[np.bool_]] = np.eye(len(edges), dtype=bool) | (np.asarray(edges) > 0)
    for middle in range(len(edges)):
        reached |= np.outer(reached[:, middle], reached[middle])
    return reached


def chances(strengths: Array) -> Array:
    """Return the probability [M, M] that the row's model wins against the column's."""
    probability: Array = 1 / (1 + np.exp(np.clip(strengths[None, :] - strengths[:, None], -700, 700)))
    return probability


def _maximum(scores: Array, connected: np.ndarray[Any, np.dtype[np.bool_]]) -> Array:
    """Return the strengths of maximum likelihood by Newton's method, with shorter steps where one overshoots."""
    duels = scores + scores.T
    strengths: Array = np.zeros(len(scores))
    best = _likelihood(scores, strengths)
    for _ in range(MAX_STEPS):
        gradient = (scores - duels * chances(strengths)).sum(axis=1)
        if np.abs(gradient).max(initial=0.0) <= TOLERANCE * max(1.0, duels.max(initial=0.0)):
            break
        step = np.linalg.pinv(_information(duels, strengths), hermitian=True) @ gradient
        for _ in range(60):
            value = _likelihood(scores, strengths + step)
            if value >= best:
                break
            step = step / 2
        else:
            break  # no step is uphill: the rounding errors are larger than the gradient
        strengths, best = strengths + step, value
    means: Array = (connected * strengths).sum(axis=1) / connected.sum(axis=1)
    return strengths - means


def _likelihood(scores: Array, strengths: Array) -> float:
    return -float((scores * np.logaddexp(0, strengths[None, :] - strengths[:, None])).sum())


def _information(duels: Array, strengths: Array) -> Array:
    """Return the Fisher information [M, M]: minus the likelihood's second derivatives."""
    chance = chances(strengths)
    return _laplacian(duels * chance * chance.T)


def _covariance(scores: Array, outcomes: Outcomes, strengths: Array, bounded: bool) -> tuple[Array, float]:
    """Return the covariance of the strengths, and how much wider its standard errors are for voters who vote alike.

    It is the sandwich (White, 1982), since a tie varies less than the model believes: of single votes, or of voters
    (Liang and Zeger, 1986) where that is wider. Where votes are all ties, or the likelihood has no maximum, the
    observed variation says too little: then the inverse information stands.
    """
    size = len(scores)
    inverse = np.asarray(np.linalg.pinv(_information(scores + scores.T, strengths), hermitian=True), np.float64)
    if not bounded or (outcomes.points == 0.5).all():
        return inverse, 1.0
    errors: Array = outcomes.points - chances(strengths)[outcomes.left, outcomes.right]
    single = inverse @ _outer(size, outcomes, errors, outcomes.voters < np.inf) @ inverse
    slopes: Array = np.zeros((outcomes.voters.max(initial=-1) + 1, size))
    named = outcomes.voters >= 0
    np.add.at(slopes, (outcomes.voters[named], outcomes.left[named]), (outcomes.votes * errors)[named])
    np.add.at(slopes, (outcomes.voters[named], outcomes.right[named]), -(outcomes.votes * errors)[named])
    clustered = inverse @ (slopes.T @ slopes + _outer(size, outcomes, errors, ~named)) @ inverse
    factor = float(np.sqrt(np.trace(clustered) / np.trace(single)))
    return (clustered, factor) if factor > 1 else (single, 1.0)


def _outer(size: int, outcomes: Outcomes, errors: Array, chosen: np.ndarray[Any, np.dtype[np.bool_]]) -> Array:
    """Return the sum [M, M] over the chosen duels of each one's slope times itself."""
    weights: Array = np.zeros((size, size))
    squares = (outcomes.votes * errors**2)[chosen]
    np.add.at(weights, (outcomes.left[chosen], outcomes.right[chosen]), squares)
    return _laplacian(weights + weights.T)


def _laplacian(weights: Array) -> Array:
    laplacian: Array = np.diag(weights.sum(axis=1)) - weights
    return laplacian
