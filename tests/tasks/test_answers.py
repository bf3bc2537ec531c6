import re
import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.tasks.answers import normalise, without_edge_marks


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("Yes.", "yes"),
        ("  The   Red\nCircle! ", "red circle"),
        ("two", "2"),
        ("None", "0"),
        ("1,000", "1000"),
        ("red, blue", "red blue"),
        ("3.5", "3.5"),
        ("dont know", "don't know"),
        ("black-and-white", "black and white"),
        ("U.S.A.", "usa"),
        ("a", "a"),  # an answer of articles alone is still an answer
        ("(A)", "a"),
        ("The A.", "the a"),
        ("Café.", "café"),
        ("เสือ.", "เสือ"),  # a tiger; with another sign above it is a shirt
        ("“पानी”", "पानी"),
        ("...", "..."),
        ("", ""),
    ],
)
def test_normalise(answer: str, normal: str) -> None:
    assert normalise(answer) == normal


@given(st.text(max_size=60))
def test_normalising_twice_changes_nothing_for_plain_words(text: str) -> None:
    plain = "".join(c for c in text if c.isalpha() and c.isascii() or c == " ")
    assert normalise(normalise(plain)) == normalise(plain)


@pytest.mark.parametrize(("word", "other"), [("เสือ", "เสื้อ"), ("पानी", "पीना")])
def test_words_that_differ_in_a_vowels_sign_differ(word: str, other: str) -> None:
    assert normalise(word) != normalise(other)


def test_composed_and_decomposed_letters_are_the_same() -> None:
    assert normalise(unicodedata.normalize("NFD", "café")) == normalise("café")


EDGES = re.compile(r"(?:(?<=\s)|^)[^\w\s'.]+|[^\w\s'.]+(?=\s|$)")


@given(st.text("a.,!'-_1 é", max_size=40) | st.text(max_size=20))
def test_marks_beside_a_space_go_as_the_rule_says(text: str) -> None:
    """Normalise by one expression, which takes time in proportion to the square of a run of marks."""
    plain = re.sub(r"(?<=\d),(?=\d{3})", "", " ".join(text.lower().split()))
    assert " ".join(map(without_edge_marks, plain.split(" "))) == EDGES.sub("", plain)


@pytest.mark.parametrize("run", ["!" * 200_000, "-," * 100_000, "." * 200_000, "' " * 100_000, "1," * 100_000])
def test_a_long_answer_takes_time_in_proportion_to_its_length(run: str) -> None:
    began = time.monotonic()
    normalise(f"a{run}b")
    assert time.monotonic() - began < 20  # the square of it would be minutes


@given(st.text(max_size=60))
def test_any_text_has_a_normal_form_that_ignores_case_and_spacing(text: str) -> None:
    assert normalise(text.upper()) == normalise(text.upper().lower())
    assert normalise(f"  {text}\n") == normalise(text)
