"""Several models' boxes as one set: weighted box fusion (arXiv 1910.13302)."""

from collections.abc import Iterable, Mapping, Sequence

from serve.tasks.base import Merged, MergeRule, Reply
from serve.tasks.boxes import DetectResult, LabelledBox
from serve.tasks.merging.agreement import agreed, weigh
from serve.tasks.merging.sightings import Cluster, clusters, fused, fused_score, overlapping, settled

HALF = 0.5


def box_fusion(method: str, least: float = 0.0) -> MergeRule:
    """Per label, boxes of different models that show one object become their mean, weighted by score x weight.

    A fused score is the supporters' scores over the weight of *all* models asked: what one of two models sees scores
    half, sorts below what both see, and never more than 1. least: boxes behind which a smaller share of the weight
    stands are left out. Agreement is the weighted mean over models of how well the fused boxes are theirs: mean IoU,
    0 for one that a model did not see, and 0 for one of its own that was left out.
    """

    def fuse(replies: Sequence[Reply], given: Mapping[str, float]) -> Merged:
        weights = weigh(replies, given)
        groups = clusters(replies, weights, _boxes)
        total = sum(weights.values())
        kept, lost = settled(groups, total, least)
        result = DetectResult.model_construct(boxes=[_fuse(group, total) for group in kept])  # each once: no new look
        close = [{seen.model: overlapping(seen.found.box, fused(group)) for seen in group} for group in kept]
        supporters = [[seen.model for seen in group] for group in kept]
        return agreed(result, method, weights, strayed(weights, close, lost), supporters)

    return fuse


def strayed(models: Iterable[str], close: Sequence[Mapping[str, float]], lost: Sequence[str]) -> dict[str, float]:
    """Each model's deviation: 1 - its mean likeness to the fused objects, its own that were left out counting as 0.

    close: per object, the likeness of those who saw it; lost: whose object was left out, once for each.
    """
    deviations = {}
    for model in models:
        objects = len(close) + lost.count(model)
        deviations[model] = 1.0 - sum(seen.get(model, 0.0) for seen in close) / objects if objects else 0.0
    return deviations


def _boxes(reply: Reply) -> Sequence[LabelledBox]:
    assert isinstance(reply.result, DetectResult)
    return reply.result.boxes


def _fuse(group: Cluster[LabelledBox], total: float) -> LabelledBox:
    return LabelledBox(label=group[0].found.label, box=fused(group), score=fused_score(group, total))
