"""Lines of text come in reading order, and phrases are found in them as whole words."""

import math

import pytest

from serve.engines.ocr.lines import Quad, TextLine, Unit, places, rows


def quad(x0: float, y0: float, x1: float, y1: float, tilt: float = 0.0) -> Quad:
    """Return a box's corners, turned by `tilt` degrees around the image's origin."""
    sine, cosine = math.sin(math.radians(tilt)), math.cos(math.radians(tilt))
    a, b, c, d = ((x * cosine - y * sine, x * sine + y * cosine) for x, y in ((x0, y0), (x1, y0), (x1, y1), (x0, y1)))
    return a, b, c, d


def line(text: str, *words: tuple[str, float]) -> TextLine:
    """Return a line whose words are ten pixels wide for each letter, with a blank of ten between."""
    units, x = [], 0.0
    for word, score in words or [(word, 0.9) for word in text.split()]:
        units.append(Unit(word, score, quad(x, 0, x + 10 * len(word), 20)))
        x += 10 * len(word) + 10
    return TextLine(text, 0.8, quad(0, 0, x, 20), units)


@pytest.mark.parametrize("tilt", [0, 12, -12])
def test_rows_come_from_top_to_bottom_and_from_left_to_right(tilt: float) -> None:
    boxes = [(300, 52, 400, 72), (10, 100, 200, 120), (10, 50, 100, 70), (10, 5, 390, 30), (120, 48, 200, 74)]
    assert rows([quad(*box, tilt) for box in boxes]) == [[3], [2, 4, 0], [1]]


def test_page_without_lines_has_no_rows() -> None:
    assert rows([]) == []


@pytest.mark.parametrize(
    ("text", "phrase", "boxes"),
    [
        ("SUB TOTAL 12", "total", [(40, 0, 90, 20)]),
        ("Total: 12", "TOTAL", [(0, 0, 60, 20)]),
        ("Subtotal 12", "total", []),
        ("in München am Main", "munchen", [(30, 0, 100, 20)]),
        ("grand  total 12", "Grand Total", [(0, 0, 110, 20)]),
        ("no no no", "no", [(0, 0, 20, 20), (30, 0, 50, 20), (60, 0, 80, 20)]),
        ("東京都庁", "京都", [(0, 0, 40, 20)]),
        ("total", "", []),
        ("total", "grand total", []),
    ],
)
def test_phrase_has_places_as_whole_words(text: str, phrase: str, boxes: list[tuple[float, ...]]) -> None:
    assert [place.box for place in places(line(text), phrase)] == boxes


def test_score_is_that_of_the_least_certain_word() -> None:
    (place,) = places(line("grand total", ("grand", 0.5), ("total", 0.99)), "grand total")
    assert place.score == 0.5


def test_line_whose_words_have_no_places_is_the_box_itself() -> None:
    (place,) = places(TextLine("grand total", 0.8, quad(5, 6, 70, 20)), "total")
    assert (place.box, place.score) == ((5, 6, 70, 20), 0.8)
    (place,) = places(line("total 12", ("tota1", 0.9)), "total")  # units that are not the text
    assert place.box == (0, 0, 60, 20)
