"""serve.tasks.merging.vote: who wins, who speaks for the winners, and what decides a tie."""

import pytest

from serve.tasks import TASKS
from serve.tasks.reply import Merged, Reply
from serve.tasks.vqa import VqaResult


def votes(*answers: tuple[str, float | None], method: str = "vote", weights: dict[str, float] | None = None) -> Merged:
    replies = [
        Reply(model=f"m{i}", status="ok", result=VqaResult(answer=answer), confidence=sure)
        for i, (answer, sure) in enumerate(answers)
    ]
    return TASKS["vqa"].methods[method](replies, weights or {})


def test_merged_answer_is_the_surest_winners() -> None:
    merged = votes(("blue", 0.99), ("Red.", 0.2), ("a red", 0.3))
    assert merged.result == VqaResult(answer="a red")
    assert merged.supporters == [["m1", "m2"]]
    assert merged.agreement == pytest.approx(2 / 3)
    assert merged.deviations == {"m0": 1, "m1": 0, "m2": 0}


@pytest.mark.parametrize(
    ("first", "second", "equal"),
    [
        ("a dog and a cat", "Cat, dog.", True),
        ("red, white, and blue", "blue & white & red", True),
        ("black-and-white", "white and black", True),
        ("1,000", "1000", True),
        ("dog and cat", "dog and two cats", False),
        ("sand", "s d", False),
        ("red", "red and red", False),
        (",", ", ,", False),
    ],
)
def test_lists_of_the_same_things_are_one_answer_in_any_order(first: str, second: str, equal: bool) -> None:
    assert votes((first, 0.5), (second, 0.5)).agreement == (1 if equal else 0.5)


def test_a_tie_goes_to_the_surer_and_then_to_the_catalogue() -> None:
    assert votes(("blue", 0.6), ("red", 0.7)).result == VqaResult(answer="red")
    assert votes(("blue", 0.7), ("red", 0.7)).result == VqaResult(answer="blue")
    assert votes(("blue", None), ("red", 0.7)).result == VqaResult(answer="blue")  # no confidence is full confidence


def test_weights_are_votes() -> None:
    assert votes(("blue", 0.1), ("red", 0.9), weights={"m0": 3}).result == VqaResult(answer="blue")
    assert votes(("blue", 0.9), ("red", 0.1), weights={"m0": 0}).result == VqaResult(answer="red")


def test_weighted_vote_lets_a_sure_model_outvote_two_guesses() -> None:
    answers = (("blue", 0.9), ("red", 0.3), ("red", 0.4))
    assert votes(*answers).result == VqaResult(answer="red")
    sure = votes(*answers, method="weighted_vote")
    assert (sure.result, sure.method, sure.supporters) == (VqaResult(answer="blue"), "weighted_vote", [["m0"]])
    assert sure.agreement == pytest.approx(1 / 3)  # how many said so, however surely
    assert votes(("blue", 0), ("red", 0), ("red", 0), method="weighted_vote").result == VqaResult(answer="red")
