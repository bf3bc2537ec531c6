"""Several models' boxes as one set: weighted box fusion (arXiv 1910.13302)."""

from collections.abc import Iterable, Mapping, Sequence

from serve.tasks.base import MergeRule
from serve.tasks.boxes import DetectResult, LabelledBox
from serve.tasks.merging.agreement import agreed, weigh
from serve.tasks.merging.sightings import Cluster, clusters, fused, fused_score, overlapping, settled
from serve.tasks.reply import Merged, Reply

HALF = 0.5


def box_fusion(method: str, least: float = 0.0) -> MergeRule:
    """Make a rule that fuses boxes of one label and one object into their mean, weighted by score x weight.

    A fused score is the supporters' weighted scores over the weight of *all* models, at most 1: a box of one of two
    models scores half and sorts below a box of both. least: the share of the weight that a box needs to be kept.
    Agreement is the weighted mean over models of the mean IoU of their boxes with the fused ones, 0 for a fused box
    that a model did not see, and 0 for a box of its own that was left out.
    """

    def fuse(replies: Sequence[Reply], given: Mapping[str, float]) -> Merged:
        weights = weigh(replies, given)
        groups = clusters(replies, weights, _boxes)
        total = sum(weights.values())
        kept, lost = settled(groups, total, least)
        result = DetectResult.model_construct(boxes=[_fuse(group, total) for group in kept])  # each once: no new look
        close = [{seen.model: overlapping(seen.labelled.box, fused(group)) for seen in group} for group in kept]
        supporters = [[seen.model for seen in group] for group in kept]
        return agreed(result, method, weights, box_deviations(weights, close, lost), supporters)

    return fuse


def box_deviations(
    models: Iterable[str], close: Sequence[Mapping[str, float]], lost: Sequence[str]
) -> dict[str, float]:
    """Return each model's deviation: 1 - its mean likeness to the fused objects, 0 for its own that were left out.

    close: per object, the likeness by model that saw it. lost: the models of objects that were left out, once for each.
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
    return LabelledBox(label=group[0].labelled.label, box=fused(group), score=fused_score(group, total))
