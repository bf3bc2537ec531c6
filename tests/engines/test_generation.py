"""The confidence of a generation, of a part of its text or of all."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.engines.base import Generation, Token


@given(
    st.lists(st.tuples(st.text("ab", max_size=3), st.floats(-9, 0)), max_size=8), st.integers(0, 20), st.integers(0, 20)
)
def test_confidence_of_a_span_is_the_mean_of_the_overlapping_tokens(
    tokens: list[tuple[str, float]], start: int, length: int
) -> None:
    generation = Generation("".join(text for text, _ in tokens), tuple(Token(text, sure) for text, sure in tokens))
    end, at, sure = start + length, 0, []
    for text, logprob in tokens:
        if at < end and at + len(text) > start:
            sure.append(logprob)
        at += len(text)
    expected = math.exp(sum(sure) / len(sure)) if sure else 1.0
    assert generation.confidence(start, end) == pytest.approx(expected)


def test_confidence_of_a_word_is_that_of_its_token() -> None:
    generation = Generation("ab cd", (Token("ab", math.log(0.5)), Token(" cd", math.log(0.125))))
    assert generation.confidence() == pytest.approx(0.25)
    assert generation.confidence(0, 2) == pytest.approx(0.5)
    assert generation.confidence(3, 5) == pytest.approx(0.125)
    assert Generation("ab").confidence() == 1
