"""The vote on labels: of one that fits best, and of any number that are right."""

import pytest

from serve.tasks import TASKS
from serve.tasks.reply import Merged, Reply
from serve.tasks.scored_labels import ClassifyResult, ScoredLabel


def vote(
    *columns: dict[str, float], multiple: bool = False, method: str = "vote", without: str = "", **weights: float
) -> Merged:
    """Merge the columns of the models a, b, ... without: those whose replies have no confidence."""
    replies = [
        Reply(
            model="abcd"[at],
            status="ok",
            result=ClassifyResult(
                labels=[ScoredLabel(label=label, score=score) for label, score in column.items()], multiple=multiple
            ),
            confidence=None if "abcd"[at] in without else next(iter(column.values()), 0.5),
        )
        for at, column in enumerate(columns)
    ]
    return TASKS["classify"].methods[method](replies, weights)


def labels(merged: Merged) -> dict[str, float]:
    assert isinstance(merged.result, ClassifyResult)
    return {label.label: label.score for label in merged.result.labels}


def test_label_with_the_most_weight_wins_and_scores_by_its_share() -> None:
    merged = vote({"cat": 0.9}, {"dog": 0.6}, {"A cat": 0.6})
    assert labels(merged) == {"cat": pytest.approx(0.5)} and merged.supporters == [["a", "c"]]
    assert merged.deviations == {"a": 0, "b": 1, "c": 0}
    assert list(labels(vote({"cat": 0.9}, {"dog": 0.6}, {"A cat": 0.6}, b=3))) == ["dog"]


def test_surer_model_decides_a_tie_and_confidence_outweighs_in_the_weighted_vote_alone() -> None:
    assert list(labels(vote({"cat": 0.4}, {"dog": 0.6}))) == ["dog"]
    sure = ({"cat": 0.2}, {"cat": 0.3}, {"dog": 0.9})
    assert list(labels(vote(*sure))) == ["cat"] and list(labels(vote(*sure, method="weighted_vote"))) == ["dog"]


@pytest.mark.parametrize(("score", "kept"), [(0.9, ["dog", "cat"]), (0.7, ["dog"])])
def test_label_of_half_of_the_weight_is_left_out_where_the_others_are_surer(score: float, kept: list[str]) -> None:
    named = {"dog": 0.8, "cat": score}
    merged = vote(named, named, {"dog": 0.8}, {"dog": 0.8}, multiple=True)
    assert list(labels(merged)) == kept


@pytest.mark.parametrize("without", ["a", "c", "ad"])
def test_label_of_half_of_the_weight_is_kept_where_a_reply_has_no_confidence(without: str) -> None:
    named = {"dog": 0.8, "cat": 0.7}
    merged = vote(named, named, {"dog": 0.8}, {"dog": 0.8}, multiple=True, without=without)
    assert list(labels(merged)) == ["dog", "cat"]


def test_each_label_with_half_of_the_weight_is_right_where_several_may_be() -> None:
    merged = vote({"cat": 1, "dog": 1}, {"dog": 1, "bird": 1}, {"dog": 1, "cat": 1}, {}, multiple=True)
    assert labels(merged) == {"cat": 0.5, "dog": 0.75} and merged.supporters == [["a", "c"]]
    assert merged.deviations["b"] == pytest.approx(2 / 3, abs=1e-6) and merged.deviations["d"] == 1
    nothing = vote({"cat": 1}, {"dog": 1}, {}, multiple=True)
    assert labels(nothing) == {} and nothing.supporters == [["c"]]
