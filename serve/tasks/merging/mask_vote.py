"""Several models' masks as one set: instances aligned as boxes are, each pixel decided by a vote."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from serve.media.geometry import Box
from serve.media.masks import Mask, Window, decode_in, encode_in, overlap, sample
from serve.tasks.base import MergeRule
from serve.tasks.masks import LabelledMask, SegmentResult
from serve.tasks.merging.agreement import agreed, weigh
from serve.tasks.merging.box_fusion import box_deviations
from serve.tasks.merging.sightings import Cluster, clusters, fused, fused_score, overlapping, settled
from serve.tasks.reply import Merged, Reply

VOTERS = 12  # so many masks are looked up at once
FULL = 100_000_000  # pixels of masks that one merge reads: of more, it looks at a grid of
SPARSE = 8_000_000  # so many
Pixels = np.ndarray[Any, np.dtype[np.int64]]
Numbers = np.ndarray[Any, np.dtype[np.uint16]]
Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class _Ballot:
    """A model's mask, stretched into the fused box. weight: of its vote. says: weight x score, for ties."""

    mask: Mask
    weight: float
    says: float


def mask_vote(method: str, least: float = 0.0) -> MergeRule:
    """Make a rule that groups masks of one object by label and box, as box fusion does, and votes on every pixel.

    Each mask is stretched from its own box to the fused one before the vote, so that two masks that differ only in
    where they lie reinforce each other. A pixel is in the merged mask when more than half of the instance's weight is
    for it; half against half, weight x score decides. Scores, and `least`, are those of box fusion.

    Agreement is the weighted mean over models of the likeness of their instances to the merged ones: the IoU of the
    masks, or that of the boxes where it is less (a model that agrees wholly draws the fused box nearer, and must not
    thereby draw the vote away from its mask). It is 0 for an instance that a model did not see, and 0 for one of its
    own that was left out.
    """

    def fuse(replies: Sequence[Reply], given: Mapping[str, float]) -> Merged:
        weights = weigh(replies, given)
        groups = clusters(replies, weights, _masks)
        total = sum(weights.values())
        kept, lost = settled(groups, total, least)
        step = _step(kept)
        instances = [_instance(group, total, step) for group in kept]
        close = [
            {seen.model: _likeness(seen.labelled, instance) for seen in group}
            for group, instance in zip(kept, instances, strict=True)
        ]
        supporters = [[seen.model for seen in group] for group in kept]
        deviations = box_deviations(weights, close, lost)
        return agreed(SegmentResult.model_construct(boxes=instances), method, weights, deviations, supporters)

    return fuse


def _masks(reply: Reply) -> Iterable[LabelledMask]:
    assert isinstance(reply.result, SegmentResult)
    return reply.result.boxes


def _step(groups: Sequence[Cluster[LabelledMask]]) -> int:
    """Return the distance of the pixels that are voted on: 1, or more where these masks have very many pixels."""
    pixels = 0
    for group in groups:
        height, width = group[0].labelled.mask.size
        for seen in group:
            window = Window.around(seen.labelled.box, width, height)
            pixels += height * window.shape[1]
    return 1 if pixels <= FULL else math.ceil(math.sqrt(pixels / SPARSE))


def _instance(group: Cluster[LabelledMask], total: float, step: int) -> LabelledMask:
    first, score = group[0].labelled, fused_score(group, total)
    if all((seen.labelled.box, seen.labelled.mask) == (first.box, first.mask) for seen in group):
        return first.model_copy(update={"score": score})
    box = fused(group)
    height, width = first.mask.size
    window = Window.around(box, width, height)
    ballots = [_Ballot(_stretched(seen.labelled, box, window, step), seen.weight, seen.says) for seen in group]
    mask = _vote(ballots)
    if step > 1:
        rows, columns = window.shape
        mask = mask.repeat(step, axis=0)[:rows].repeat(step, axis=1)[:, :columns]
    return LabelledMask(label=first.label, box=box, score=score, mask=encode_in(mask, window, (height, width)))


def _stretched(labelled: LabelledMask, box: Box, window: Window, step: int) -> Mask:
    """Stretch a mask from its own box to `box`. Returns every step-th pixel of the window's rows and columns."""
    height, width = labelled.mask.size
    own = Window.around(labelled.box, width, height)
    x, there_x = _sources(
        window.left, window.right, step, (box[0], box[2]), (labelled.box[0], labelled.box[2]), own.columns
    )
    y, there_y = _sources(
        window.top, window.bottom, step, (box[1], box[3]), (labelled.box[1], labelled.box[3]), own.rows
    )
    stretched = np.zeros((len(y), len(x)), bool)
    if step > 1:
        stretched[np.ix_(there_y, there_x)] = sample(labelled.mask, y[there_y], x[there_x])
        return stretched
    part = decode_in(labelled.mask, own).T  # as run lengths are: column by column
    some = part.take(x[there_x] - own.left, axis=0).take(y[there_y] - own.top, axis=1).T
    if some.shape == stretched.shape:
        return some
    stretched[np.ix_(there_y, there_x)] = some
    return stretched


def _sources(
    begin: int, end: int, step: int, to: tuple[float, float], source: tuple[float, float], own: range
) -> tuple[Pixels, Mask]:
    """Map the pixels begin, begin + step ... of the span `to` to those at the same place in the span `source`.

    Returns them, and whether each is one of the pixels `own`.
    """
    centres = (np.arange(begin, end, step) + 0.5 - to[0]) / max(to[1] - to[0], 1e-9)
    pixels: Pixels = np.floor(source[0] + centres * (source[1] - source[0])).astype(np.int64)
    return pixels, (pixels >= own.start) & (pixels < own.stop)


def _vote(ballots: Sequence[_Ballot]) -> Mask:
    """Return the pixels with more weight for than against them; of those with equal weight, by weight x score.

    Where there are none, the pixels with the most weight, then the most weight x score, of the first model that has
    any: an instance without a pixel would be none. The set of masks that a pixel is in makes a number, by which the sum
    of their votes is looked up.
    """
    weights = np.array([ballot.weight for ballot in ballots])
    weights = weights if weights.any() else np.ones(len(ballots))  # nobody has a say: all count the same
    says = np.array([ballot.says for ballot in ballots])
    almost = 1e-9 * weights.sum()
    some = [slice(at, at + VOTERS) for at in range(0, len(ballots), VOTERS)]
    sums = [_sums(ballots[part], weights[part], says[part]) for part in some]
    if len(sums) == 1:
        decided: Mask = _verdicts(*sums[0][1:], almost).take(sums[0][0])
        if decided.any():
            return decided
    votes = np.sum([table.take(number) for number, table, _ in sums], axis=0)
    sure = np.sum([table.take(number) for number, _, table in sums], axis=0)
    decided = _verdicts(votes, sure, almost)
    if decided.any():
        return decided
    inside: Mask = np.any([ballot.mask for ballot in ballots], axis=0)
    if not inside.any():
        return inside
    most: Mask = inside & (votes >= votes[inside].max() - almost)
    most &= sure >= sure[most].max() - 1e-9 * says.sum()
    return next(there for ballot in ballots if (there := most & ballot.mask).any())


def _sums(ballots: Sequence[_Ballot], weights: Floats, says: Floats) -> tuple[Numbers, Floats, Floats]:
    """Return the number of each pixel, and for each number the sums of weights and of `says`, for less against."""
    numbers = np.arange(2 ** len(ballots), dtype=np.uint16)
    sides = np.where(numbers[:, None] >> np.arange(len(ballots)) & 1, 1.0, -1.0)
    number = np.zeros_like(ballots[0].mask, np.uint16)
    for at, ballot in enumerate(ballots):
        number |= ballot.mask.astype(np.uint16) << at
    return number, sides @ weights, sides @ says


def _verdicts(votes: Floats, sure: Floats, almost: float) -> Mask:
    decided: Mask = np.where(np.abs(votes) <= almost, sure > 0, votes > 0)
    return decided


def _likeness(own: LabelledMask, merged: LabelledMask) -> float:
    """Return the smaller of the IoU of the masks and that of the boxes; two empty masks are equal."""
    boxes = overlapping(own.box, merged.box)
    if own.mask == merged.mask:
        return boxes
    return min(boxes, overlap(own.mask, merged.mask))
