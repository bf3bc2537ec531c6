"""Several models' masks as one set: instances aligned as boxes are, each pixel decided by a vote."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from serve.geometry import Box
from serve.masks import Mask, Window, decode_in, encode_in
from serve.tasks.agreement import agreed, weigh
from serve.tasks.base import Merged, MergeRule, Reply
from serve.tasks.box_fusion import strayed
from serve.tasks.masks import LabelledMask, SegmentResult
from serve.tasks.sightings import Cluster, clusters, fused, fused_score, share

VOTERS = 12  # at most so many models vote on one instance's pixels, the surest of them
Pixels = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class _Ballot:
    """One model's mask as it lies in the fused box. weight: of its vote; says: weight x score, for ties."""

    mask: Mask
    weight: float
    says: float


def mask_vote(method: str, least: float = 0.0) -> MergeRule:
    """Masks of different models are one instance where their labels and boxes say so, as in weighted box fusion.

    Each mask is stretched from its own box to the fused one before the vote, so that two masks that differ only in
    where they lie reinforce each other. A pixel is in the merged mask when more than half of the instance's weight is
    for it; half against half, weight x score decides. Scores, and `least`, are those of box fusion. Agreement is the
    weighted mean over models of the mean IoU of its masks with the merged ones: 0 for one that it did not see, and 0
    for one of its own that was left out.
    """

    def fuse(replies: Sequence[Reply], given: Mapping[str, float]) -> Merged:
        weights = weigh(replies, given)
        groups = clusters(replies, weights, _masks)
        total = sum(weights.values())
        kept = [group for group in groups if share(group, total) >= least]
        lost = [seen.model for group in groups if share(group, total) < least for seen in group]
        instances = [_instance(group, total) for group in kept]
        close = [
            {seen.model: _likeness(seen.found, instance) for seen in group}
            for group, instance in zip(kept, instances, strict=True)
        ]
        supporters = [[seen.model for seen in group] for group in kept]
        deviations = strayed(weights, close, lost)
        return agreed(SegmentResult(boxes=instances), method, weights, deviations, supporters)

    return fuse


def _masks(reply: Reply) -> Iterable[LabelledMask]:
    assert isinstance(reply.result, SegmentResult)
    return reply.result.boxes


def _instance(group: Cluster[LabelledMask], total: float) -> LabelledMask:
    first, score = group[0].found, fused_score(group, total)
    if all((seen.found.box, seen.found.mask) == (first.box, first.mask) for seen in group):
        return first.model_copy(update={"score": score})
    box = fused(group)
    height, width = first.mask.size
    window = Window.around(box, width, height)
    ballots = [_Ballot(_stretched(seen.found, box, window), seen.weight, seen.says) for seen in group]
    mask = _vote(ballots)
    if not mask.any():  # masks that have nothing in common: an instance without a pixel would be none
        mask = max(ballots, key=lambda ballot: (ballot.mask.any(), ballot.says)).mask
    return LabelledMask(label=first.label, box=box, score=score, mask=encode_in(mask, window, (height, width)))


def _stretched(found: LabelledMask, box: Box, window: Window) -> Mask:
    """The mask as if its own box were `box`: the pixels of the window, each from where it would lie in its own box."""
    height, width = found.mask.size
    own = Window.around(found.box, width, height)
    columns = _sources(window.left, window.right, (box[0], box[2]), (found.box[0], found.box[2])) - own.left
    rows = _sources(window.top, window.bottom, (box[1], box[3]), (found.box[1], found.box[3])) - own.top
    part = decode_in(found.mask, own).T  # as run lengths are: column by column
    if not part.size:
        return np.zeros(window.shape, bool)
    stretched: Mask = part.take(columns, axis=0, mode="clip").take(rows, axis=1, mode="clip").T
    return stretched


def _sources(begin: int, end: int, to: tuple[float, float], source: tuple[float, float]) -> Pixels:
    """For the pixels begin..end-1 of a span `to`, which pixel of the span `source` lies at the same place in it."""
    centres = (np.arange(begin, end) + 0.5 - to[0]) / max(to[1] - to[0], 1e-9)
    pixels: Pixels = np.floor(source[0] + centres * (source[1] - source[0])).astype(np.int64)
    return pixels


def _vote(ballots: Sequence[_Ballot]) -> Mask:
    """Which masks a pixel is in makes a number, and what is decided there is looked up by it."""
    ballots = sorted(ballots, key=lambda ballot: -ballot.says)[:VOTERS]
    weights = np.array([ballot.weight for ballot in ballots])
    weights = weights if weights.any() else np.ones(len(ballots))  # nobody has a say: all count the same
    says = np.array([ballot.says for ballot in ballots])
    numbers = np.arange(2 ** len(ballots), dtype=np.uint16)
    sides = np.where(numbers[:, None] >> np.arange(len(ballots)) & 1, 1.0, -1.0)
    votes, sure = sides @ weights, sides @ says
    verdicts = np.where(np.abs(votes) <= 1e-9 * weights.sum(), sure > 0, votes > 0)
    number = np.zeros_like(ballots[0].mask, np.uint16)
    for at, ballot in enumerate(ballots):
        number |= ballot.mask.astype(np.uint16) << at
    decided: Mask = verdicts.take(number)
    return decided


def _likeness(found: LabelledMask, merged: LabelledMask) -> float:
    """Intersection over union of two masks; two empty ones are alike."""
    if found.mask == merged.mask:
        return 1.0
    height, width = merged.mask.size
    if found.mask.size != merged.mask.size:
        return 0.0
    boxes = np.array([found.box, merged.box])
    around = (*boxes[:, :2].min(axis=0).tolist(), *boxes[:, 2:].max(axis=0).tolist())
    window = Window.around(around, width, height)
    own, theirs = decode_in(found.mask, window), decode_in(merged.mask, window)
    union = np.count_nonzero(own | theirs)
    return np.count_nonzero(own & theirs) / union if union else 1.0
