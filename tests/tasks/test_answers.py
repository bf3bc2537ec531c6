import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.tasks.answers import normalise


@pytest.mark.parametrize(
    ("said", "meant"),
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
        ("...", "..."),
        ("", ""),
    ],
)
def test_normalise(said: str, meant: str) -> None:
    assert normalise(said) == meant


@given(st.text(max_size=60))
def test_normalising_twice_changes_nothing_for_plain_words(text: str) -> None:
    plain = "".join(c for c in text if c.isalpha() and c.isascii() or c == " ")
    assert normalise(normalise(plain)) == normalise(plain)


@given(st.text(max_size=60))
def test_any_text_has_a_normal_form_that_ignores_case_and_spacing(text: str) -> None:
    assert normalise(text.upper()) == normalise(text.upper().lower())
    assert normalise(f"  {text}\n") == normalise(text)
