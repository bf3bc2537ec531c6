"""Texts in any script: from the fonts of this machine, and said where there is none."""

import PIL.Image
import PIL.ImageDraw
import pytest

from serve.media import lettering
from serve.media.lettering import ABSENT, BUILT_IN, Lettering

SCRIPTS = {"latin": "cat", "cyrillic": "кошка", "arabic": "قطة", "greek": "γάτα"}
UNKNOWN = "\U0010fffd"
"""A letter for private use, which no font has."""


def ink(letters: Lettering, text: str) -> int:
    """Return how many pixels a text darkens."""
    page = PIL.Image.new("L", (400, 60), "white")
    letters.draw(PIL.ImageDraw.Draw(page), (5, 5), text, 30, "black")
    return sum(page.histogram()[:128])


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("source", ["usual", "fontconfig"])
def test_script_is_drawn_in_a_font_with_its_letters(script: str, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    letters = Lettering()
    if source == "fontconfig":
        letters._faces = [BUILT_IN]
        if not lettering._search("я"):
            pytest.skip("no fontconfig here")
    assert ink(letters, SCRIPTS[script]) > 100 and not letters.missing and letters.note() == ""


def test_cjk_is_drawn_or_noted_to_have_no_font() -> None:
    letters = Lettering()
    assert ink(letters, "a 猫") > 100
    assert ("猫" in letters.missing) == ("CJK" in letters.note()) == (not lettering._search("猫"))


def test_letter_without_a_font_is_a_square_and_a_note() -> None:
    letters = Lettering()
    assert ink(letters, UNKNOWN) == ink(Lettering(), ABSENT) > 0
    assert letters.note() == f"{ABSENT}: no font of this machine has it (unnamed)."


def test_letters_of_a_client_are_searched_for_a_bounded_number_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[str] = []
    monkeypatch.setattr(lettering, "_search", lambda letter: searched.append(letter) or ())
    Lettering().length("".join(chr(0x10F000 + at) for at in range(200)), 20)
    assert len(searched) == lettering.SEARCHES


def test_machine_without_fontconfig_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    lettering._search.cache_clear()
    assert lettering._search("я") == ()
    lettering._search.cache_clear()


def test_width_is_that_of_all_pieces() -> None:
    letters = Lettering()
    assert letters.length("cat кошка", 20) == pytest.approx(
        letters.length("cat ", 20) + letters.length("кошка", 20), abs=1
    )
    assert letters.box("cat кошка", 20)[1] > 10
