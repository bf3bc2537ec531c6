"""serve.tasks.merging.medoid: the most central text, and never one that nobody said."""

import pytest

from serve.tasks import TASKS
from serve.tasks.caption import CaptionResult
from serve.tasks.merging.medoid import similarity
from serve.tasks.reply import Merged, Reply

TEXTS = ("a red circle and a star", "a dog", "a red circle and a blue star")


def choose(*texts: str, sure: tuple[float, ...] = (), weights: dict[str, float] | None = None) -> Merged:
    replies = [
        Reply(model="abcd"[i], status="ok", result=CaptionResult(caption=text), confidence=dict(enumerate(sure)).get(i))
        for i, text in enumerate(texts)
    ]
    return TASKS["caption"].methods["medoid"](replies, weights or {})


def test_medoid_is_the_text_most_like_the_others() -> None:
    merged = choose(*TEXTS)
    assert merged.result in (CaptionResult(caption=TEXTS[0]), CaptionResult(caption=TEXTS[2]))
    assert merged.supporters == [["a", "c"]]
    assert merged.deviations["b"] > 0.5


def test_medoid_of_two_texts_is_the_surer_models() -> None:
    assert choose("a cat", "a dog", sure=(0.4, 0.5)).result == CaptionResult(caption="a dog")
    assert choose("a cat", "a dog", sure=(0.5, 0.5)).result == CaptionResult(caption="a cat")


def test_a_heavy_model_counts_as_so_many_that_say_the_same() -> None:
    assert choose(*TEXTS, weights={"b": 5}).result == CaptionResult(caption="a dog")
    assert choose("a cat", "a dog", sure=(0.4, 0.9), weights={"a": 1.5}).result == CaptionResult(caption="a cat")


def test_of_texts_with_the_same_words_the_order_that_most_have_is_chosen() -> None:
    texts = ("a star and a circle", "a circle and a star", "a star and a circle")
    merged = choose(*texts, sure=(0.5, 0.9, 0.6))
    assert merged.result == CaptionResult(caption="a star and a circle")
    assert merged.supporters == [["a", "b", "c"]] and merged.agreement == 1


def test_no_other_reply_would_agree_better() -> None:
    merged = choose(*TEXTS, weights={"c": 2})
    for text in TEXTS:
        mean = sum(w * similarity(text, other) for w, other in zip((1, 1, 2), TEXTS, strict=True)) / 4
        assert merged.agreement >= mean - 1e-9


@pytest.mark.parametrize(("a", "b"), [("A red, star!", "a red star"), ("", ""), ("a star", "star a")])
def test_case_marks_and_the_order_of_words_are_no_difference(a: str, b: str) -> None:
    assert similarity(a, b) == 1


@pytest.mark.parametrize(("a", "b"), [("Été!", "e\u0301te\u0301"), ("क्या?", "क्या"), ("你好。", "你好")])
def test_marks_around_words_are_no_difference_in_any_script(a: str, b: str) -> None:
    assert similarity(a, b) == 1


@pytest.mark.parametrize(("a", "b"), [("लाल", "लीला"), ("की", "का"), ("สี", "สุ"), ("😀", "😡"), ("❤️", "✔️"), ("+", "-")])
def test_vowel_signs_and_texts_without_words_are_a_difference(a: str, b: str) -> None:
    assert similarity(a, b) < 0.9
    merged = choose(a, b)
    assert merged.supporters == [["a"]] and merged.agreement < 1
