"""A vote on each field of an object, so that the merged one may be right where no model is right throughout."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from serve.tasks.base import MergeRule
from serve.tasks.extracted import (
    NEAR,
    ExtractResult,
    field_likeness,
    folded,
    is_number,
    leaves,
    likeness_of_leaves,
    same_leaf,
)
from serve.tasks.merging.agreement import agreed, standing, weigh
from serve.tasks.object_schema import fault_of
from serve.tasks.reply import Merged, Reply

ABSENT = object()
"""The value of a field that an object does not have: a vote, too."""
Strength = Callable[[Sequence[str]], tuple[float, float]]


def field_vote(method: str, by_confidence: bool = False) -> MergeRule:
    """Make a rule that takes for each field the value with the most weight.

    Ties go to the larger sum of weight x confidence, then to the earlier in the catalogue. by_confidence: that product
    is the weight itself. Where the merged object does not satisfy the schema, the reply that all are most like stands.
    A model deviates by the share of the fields, its own and the merged ones, that it has otherwise.
    """

    def vote(replies: Sequence[Reply], given: Mapping[str, float]) -> Merged:
        weights = weigh(replies, given)
        says = {reply.model: standing(reply, weights) for reply in replies}
        votes = says if by_confidence and any(says.values()) else weights
        results = {reply.model: _result(reply) for reply in replies}
        values = {model: result.data for model, result in results.items()}

        def strength(camp: Sequence[str]) -> tuple[float, float]:
            return round(sum(votes[model] for model in camp), 9), round(sum(says[model] for model in camp), 9)

        merged = _choose(values, strength)
        schema = next(iter(results.values())).schema_text
        if schema and fault_of(merged, schema) is not None:
            merged = _most_like(values, votes, says)
        total = sum(weights.values())
        all_leaves = {model: dict(leaves(value)) for model, value in values.items()}
        agreement = {
            path: min(
                1.0, round(sum(weights[model] for model in values if _has(all_leaves[model], path, leaf)) / total, 6)
            )
            for path, leaf in leaves(merged)
        }
        deviations = {model: 1.0 - field_likeness(value, merged) for model, value in values.items()}
        nearest = min(deviations.values())
        supporters = [model for model, deviation in deviations.items() if deviation == nearest]
        return agreed(ExtractResult.of(merged, schema, agreement), method, weights, deviations, [supporters])

    return vote


def _result(reply: Reply) -> ExtractResult:
    assert isinstance(reply.result, ExtractResult)
    return reply.result


def _has(fields: Mapping[str, Any], path: str, leaf: Any) -> bool:
    return path in fields and same_leaf(fields[path], leaf)


def _choose(values: Mapping[str, Any], strength: Strength) -> Any:
    """Return the winning value at one place. values: by model, those that have the place; ABSENT may be one."""
    camp = _strongest(values, _key(values), strength)
    first = values[camp[0]]
    if isinstance(first, dict):
        names = dict.fromkeys(name for model in camp for name in values[model])
        fields = {name: _choose({model: values[model].get(name, ABSENT) for model in camp}, strength) for name in names}
        return {name: value for name, value in fields.items() if value is not ABSENT}
    if isinstance(first, list):
        lists = {model: values[model] for model in camp}
        lasting = _strongest(lists, len, strength)
        of_objects = all(isinstance(item, dict) for items in lists.values() for item in items)
        voters = camp if of_objects else lasting
        return [
            _choose({model: lists[model][at] for model in voters if at < len(lists[model])}, strength)
            for at in range(len(lists[lasting[0]]))
        ]
    spelled = _strongest({model: values[model] for model in camp}, lambda value: (type(value), repr(value)), strength)
    return values[spelled[0]]


def _strongest(values: Mapping[str, Any], key: Callable[[Any], Any], strength: Strength) -> list[str]:
    """Return the models whose values have the key with the most votes."""
    camps: dict[Any, list[str]] = {}
    for model, value in values.items():
        camps.setdefault(key(value), []).append(model)
    return max(camps.values(), key=strength)  # max keeps the first of equals: catalogue order


def _key(values: Mapping[str, Any]) -> Callable[[Any], Any]:
    """Return a function of a value that is the same for those of one camp: objects, lists, and equal scalars."""
    heads: dict[float, float] = {}
    head: float | None = None
    for number in sorted({value for value in values.values() if is_number(value)}):
        if head is None or not math.isclose(head, number, rel_tol=NEAR):
            head = number
        heads[number] = head

    def key(value: Any) -> Any:
        if is_number(value):
            return "number", heads[value]
        if isinstance(value, str):
            return "text", folded(value)
        return type(value), value if isinstance(value, bool) else None

    return key


def _most_like(values: Mapping[str, Any], votes: Mapping[str, float], says: Mapping[str, float]) -> Any:
    """Return the value of the model that all others are most like, by their votes."""
    likeness = {(model, model): 1.0 for model in values}
    fields = {model: dict(leaves(value)) for model, value in values.items()}
    for model, other in itertools.combinations(values, 2):
        likeness[model, other] = likeness[other, model] = likeness_of_leaves(fields[model], fields[other])

    def support(model: str) -> tuple[float, float]:
        return round(sum(votes[other] * likeness[model, other] for other in values), 9), says[model]

    return values[max(values, key=support)]
