"""ROVER and alignment: readings of one text, line by line, word by word, letter by letter."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from serve.tasks import TASKS
from serve.tasks.merging import alignment
from serve.tasks.merging.alignment import Work, network
from serve.tasks.merging.rover import vote
from serve.tasks.ocr import OcrResult
from serve.tasks.reply import Merged, Reply


def read(*texts: str, sure: tuple[float, ...] = (), weights: dict[str, float] | None = None) -> Merged:
    replies = [
        Reply(model="abcd"[i], status="ok", result=OcrResult(text=text), confidence=dict(enumerate(sure)).get(i))
        for i, text in enumerate(texts)
    ]
    return TASKS["ocr"].methods["rover"](replies, weights or {})


def text(merged: Merged) -> str:
    assert isinstance(merged.result, OcrResult)
    return merged.result.text


@pytest.mark.parametrize(
    ("texts", "merged"),
    [
        (("GRAND HOTEL", "GRANO HOTEL", "GRAND HOTFL"), "GRAND HOTEL"),  # nobody but the vote has to be right
        (("GRAND", "HOTEL GRAND", "HOTEL GRAND"), "HOTEL GRAND"),  # a word that one left out
        (("a b c", "a b c d", "a b c"), "a b c"),  # a word that one made up
        (("ab cd", "abcd", "ab cd"), "ab cd"),
        (("one\ntwo", "two", "one\ntwo\nthree"), "one\ntwo"),  # lines are voted on as words are
        (("one\n\n  two", "one\ntwo", "one\nto"), "one\ntwo"),
        (("HELL0", "HEILO", "FELLO"), "HELLO"),  # no word has a majority: its letters have
        (("", "", "a"), ""),
        (("", "", ""), ""),
    ],
)
def test_three_readings(texts: tuple[str, ...], merged: str) -> None:
    for order in itertools.permutations(texts):
        assert text(read(*order)) == merged


def test_surer_model_of_two_decides_every_difference() -> None:
    assert text(read("GRAND HOTEI", "GRANO HOTEL", sure=(0.8, 0.7))) == "GRAND HOTEI"
    assert text(read("GRAND HOTEI", "GRANO HOTEL", sure=(0.6, 0.7))) == "GRANO HOTEL"
    assert text(read("GRAND", "", sure=(0.6, 0.7))) == ""
    assert text(read("one", "two", sure=(0.9, 0.8), weights={"b": 2})) == "two"


def test_supporters_have_the_merged_text_and_others_deviate_by_letters() -> None:
    merged = read("HOTEL", "HOTFL", "MOTOR")
    assert text(merged) == "HOTEL"
    assert merged.supporters == [["a", "b"]]
    assert merged.deviations == pytest.approx({"a": 0, "b": 0.2, "c": 0.6})
    assert merged.agreement == pytest.approx(1 - 0.8 / 3)


def test_nearest_model_is_the_supporter_where_none_is_near() -> None:
    merged = read("abcd", "efgh", "ijkl", sure=(0.5, 0.6, 0.7))
    assert len(merged.supporters) == 1 and merged.supporters[0]


def test_noise_that_models_do_not_share_is_voted_out() -> None:
    rng = random.Random(0)
    known = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 8))) for _ in range(100)]
    page = [[rng.choice(known) for _ in range(8)] for _ in range(15)]
    true = "\n".join(map(" ".join, page))

    def noisy() -> str:
        lines = [[rng.choice(known) if rng.random() < 0.1 else w for w in line if rng.random() > 0.03] for line in page]
        return "\n".join(map(" ".join, lines))

    texts = [noisy() for _ in range(4)]
    wrong = [Levenshtein.normalized_distance(true, reading) for reading in [*texts, text(read(*texts))]]
    assert wrong[-1] < min(wrong[:-1]) / 3


word_lists = st.lists(st.sampled_from(["a", "b", "ab", "ba", "abc", "x"]), max_size=6)


@given(st.lists(word_lists, min_size=1, max_size=4))
@settings(deadline=None)
def test_a_network_holds_every_sequence_whole_and_in_order(sequences: list[list[str]]) -> None:
    slots = network(sequences, Work(10**6))
    assert slots is not None and all(slots)
    for at, sequence in enumerate(sequences):
        assert [slot[at] for slot in slots if at in slot] == sequence


def test_like_stands_with_like() -> None:
    slots = network([["the", "quick", "fox"], ["quik", "fox"], ["the", "old", "quick", "fix"]], Work(10**6))
    assert slots == [
        {0: "the", 2: "the"},
        {2: "old"},
        {0: "quick", 1: "quik", 2: "quick"},
        {0: "fox", 1: "fox", 2: "fix"},
    ]


@pytest.mark.slow
def test_too_many_texts_to_align_are_not_voted_on_and_the_most_central_stands() -> None:
    """Count the work by the square of the number of texts, as comparisons grow, not by each pair."""
    rng = random.Random(7)
    long = [" ".join(rng.choices(["ab", "cd", "ef", "gh"], k=400)) for _ in range(24)]
    assert vote(long, [1.0] * 24) == [] and vote(long[:3], [1.0] * 3) != []
    lines = ["\n".join(rng.choices(["a b", "c", "d e f"], k=300)) for _ in range(64)]
    assert vote(lines, [1.0] * 64) == []
    merged = read(*long[:3])
    assert text(merged) and merged == read(*long[:3])


@pytest.mark.slow
def test_equal_texts_need_no_alignment() -> None:
    same = "\n".join(f"line {at} of many" for at in range(2000))
    assert vote([same] * 64, [1.0] * 64) == [same]


@pytest.mark.slow
def test_the_order_of_texts_that_are_equally_unlike_the_first_does_not_matter() -> None:
    for texts in itertools.product(["a b", "b c", "c d", "d a b", ""], repeat=3):
        says = [0.5, 0.7, 1.1]
        readings = list(zip(texts, says, strict=True))
        results = {
            tuple(vote([text for text, _ in turned], [sure for _, sure in turned]))
            for turned in itertools.permutations(readings)
        }
        assert len(results) == 1, texts


def test_texts_too_long_to_align_are_not_voted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment, "MOST", 8)
    texts = ["a b c", "a x c", "a b c"]
    assert vote(texts, [1, 1, 1]) == []
    assert text(read(*texts)) == "a b c"  # the most central of the readings
