"""A vote on labels: the one with the most weight, or all that half of the weight is for."""

from collections.abc import Mapping, Sequence

from serve.tasks.base import MergeRule
from serve.tasks.boxes import label_key
from serve.tasks.merging.agreement import agreed, standing, weigh
from serve.tasks.reply import Merged, Reply
from serve.tasks.scored_labels import ClassifyResult, ScoredLabel, label_likeness

HALF = 0.5


def label_vote(method: str, by_confidence: bool = False) -> MergeRule:
    """Make a rule that takes the label with the most weight; where several may be right, each with half of it.

    Ties go to the larger sum of weight x score, then to the catalogue. A label with exactly half of the weight is left
    out where the replies without it are surer, by their confidence, than those with it are of the label; where a reply
    has no confidence, the label is kept. by_confidence: a vote counts weight x confidence instead. A score is the sum
    of weight x score over the weight of all models. A model deviates by 1 - the Jaccard index of its labels and the
    merged ones.
    """

    def vote(replies: Sequence[Reply], given: Mapping[str, float]) -> Merged:
        weights = weigh(replies, given)
        results = {reply.model: _result(reply) for reply in replies}
        says = {reply.model: standing(reply, weights) for reply in replies}
        votes = says if by_confidence and any(says.values()) else weights
        labels: dict[str, list[tuple[str, ScoredLabel]]] = {}
        for model, result in results.items():
            for label in result.labels:
                labels.setdefault(label_key(label.label), []).append((model, label))
        shares = {
            key: round(sum(votes[model] for model, _ in camp) / sum(votes.values()), 9) for key, camp in labels.items()
        }
        sums = {key: sum(weights[model] * label.score for model, label in camp) for key, camp in labels.items()}
        multiple = any(result.multiple for result in results.values())
        if multiple:
            all_say, known = sum(says.values()), all(reply.confidence is not None for reply in replies)
            against = {key: all_say - sum(says[model] for model, _ in camp) for key, camp in labels.items()}
            lead = {key: round(sums[key] - against[key], 9) if known else 0.0 for key in labels}
            kept = [key for key in labels if (shares[key], lead[key]) >= (HALF, 0)]
        else:
            # max keeps the first of equals: catalogue order
            kept = [max(labels, key=lambda key: (shares[key], sums[key]))] if labels else []
        merged = ClassifyResult(labels=[_merge(labels[key], weights) for key in kept], multiple=multiple)
        deviations = {model: 1.0 - label_likeness(result.keys, merged.keys) for model, result in results.items()}
        nearest = min(deviations.values())
        supporters = [model for model, deviation in deviations.items() if deviation == nearest]
        return agreed(merged, method, weights, deviations, [supporters])

    return vote


def _result(reply: Reply) -> ClassifyResult:
    assert isinstance(reply.result, ClassifyResult)
    return reply.result


def _merge(camp: Sequence[tuple[str, ScoredLabel]], weights: Mapping[str, float]) -> ScoredLabel:
    score = sum(weights[model] * label.score for model, label in camp) / sum(weights.values())
    return ScoredLabel(label=camp[0][1].label, score=min(1.0, score))
