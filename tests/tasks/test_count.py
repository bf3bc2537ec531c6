import pytest

from serve.engines.base import Generation
from serve.errors import ParseError
from serve.tasks.count import CountResult


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("3", 3),
        ("There are three cats.", 3),
        ("None", 0),
        ("1,200 people", 1200),
        ("3 (three)", 3),
        ("**12**", 12),
        ("I see 4. So the answer is 4.", 4),
    ],
)
def test_number_is_read_in_digits_and_words(text: str, count: int) -> None:
    assert CountResult.read(Generation(text)).count == count


@pytest.mark.parametrize("text", ["", "many", "2 or 3", "two or three", "-3", "3.5", "50%", "12345678", "9" * 10_000])
def test_reply_without_one_number_is_an_error(text: str) -> None:
    with pytest.raises(ParseError, match="does not say one number"):
        CountResult.read(Generation(text))


def test_cut_reply_without_a_number_says_so() -> None:
    with pytest.raises(ParseError, match="cut by max_tokens"):
        CountResult.read(Generation("There are", cut=True))
