"""The vote on fields: nested objects, lists, spellings, and the schema that the merged object satisfies."""

import json
from typing import Any

import pytest

from serve.client.evaluation.measures.objects import field_accuracy
from serve.client.evaluation.score import resamples
from serve.tasks.extract import EXTRACT
from serve.tasks.extracted import ExtractResult
from serve.tasks.reply import Merged, Reply


def merge(
    *values: dict[str, Any], schema: Any = "", method: str = "field_vote", sure: Any = (), **weights: float
) -> Merged:
    text = json.dumps(schema) if schema else ""
    replies = [
        Reply(
            model="abcd"[at],
            status="ok",
            result=ExtractResult.of(value, text),
            confidence=dict(enumerate(sure)).get(at),
        )
        for at, value in enumerate(values)
    ]
    return EXTRACT.methods[method](replies, weights)


def value(merged: Merged) -> Any:
    assert isinstance(merged.result, ExtractResult)
    return merged.result.data


def test_merged_object_may_be_no_models_own() -> None:
    merged = merge({"a": 1, "b": {"c": "x"}}, {"a": 1, "b": {"c": "y"}}, {"a": 2, "b": {"c": "y"}})
    assert value(merged) == {"a": 1, "b": {"c": "y"}}
    assert merged.result.field_agreement == {"/a": pytest.approx(2 / 3), "/b/c": pytest.approx(2 / 3)}
    assert merged.supporters == [["b"]] and merged.deviations == {"a": 0.5, "b": 0.0, "c": 0.5}


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([{"a": " Red"}, {"a": "red"}, {"a": "RED"}, {"a": "red"}], {"a": "red"}),
        ([{"a": 1.0}, {"a": 1.0000001}, {"a": 2}], {"a": 1.0}),
        ([{"a": 1}, {"a": True}, {"a": True}], {"a": True}),
        ([{"a": None}, {}, {}], {}),
        ([{"a": [1, 2]}, {"a": [1, 3]}, {"a": [9, 3, 4]}, {"a": [1, 3]}], {"a": [1, 3]}),
        ([{"a": [1, 2]}, {"a": [1, 3]}, {"a": [9, 3, 4]}], {"a": [1, 2]}),
        ([{"a": [{"b": 1}]}, {"a": [{"b": 2}]}, {"a": [{"b": 2}, {"b": 3}]}], {"a": [{"b": 2}]}),
        ([{"a": {"b": 1}}, {"a": [1]}, {"a": {"b": 2}}], {"a": {"b": 1}}),
    ],
)
def test_field_takes_the_value_with_the_most_votes(values: list[dict[str, Any]], wanted: Any) -> None:
    merged = value(merge(*values))
    assert merged == wanted and json.dumps(merged) == json.dumps(wanted)


def test_ties_go_to_the_surer_model_and_weights_decide_before() -> None:
    split = [{"a": "x"}, {"a": "y"}]
    assert value(merge(*split)) == {"a": "x"}
    assert value(merge(*split, sure=(0.2, 0.9))) == {"a": "y"}
    assert value(merge(*split, sure=(0.2, 0.9), a=3)) == {"a": "x"}
    assert value(merge(*split, sure=(0.2, 0.9), a=3, method="weighted_field_vote")) == {"a": "y"}


def test_object_that_the_vote_would_break_gives_way_to_the_reply_that_most_is_like() -> None:
    allowed = [(1, 1, 1), (1, 2, 2), (2, 1, 2)]
    sides = [
        {"type": "object", "properties": {name: {"const": number} for name, number in zip("xyz", row, strict=True)}}
        for row in allowed
    ]
    schema = {"type": "object", "properties": {"a": {"anyOf": sides}}}
    values = [{"a": dict(zip("xyz", row, strict=True))} for row in allowed]
    assert value(merge(*values, c=1.2)) == {"a": {"x": 1, "y": 1, "z": 2}}
    assert value(merge(*values, c=1.2, schema=schema)) == values[2]


def test_accuracy_counts_fields_of_truth_and_answer() -> None:
    truth = {"data": {"a": "Red", "b": [1, 2]}}
    answers = [{"data": {"a": "red ", "b": [1, 3], "c": 1}}, {"data": {"a": "red", "b": [1, 2]}}, None]
    accuracy, exact = field_accuracy([truth] * 3, answers, resamples("abc"))
    assert accuracy.value == pytest.approx(100 * 5 / 10) and exact.value == pytest.approx(100 / 3)
