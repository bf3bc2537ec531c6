"""Short answers made comparable, after the VQAv2 evaluation's rules (visualqa.org/evaluation.html)."""

import functools
import re
import unicodedata

_NUMBERS = {
    word: str(number) for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
}
_NUMBERS["none"] = "0"
_ARTICLES = {"a", "an", "the"}
# Apostrophes that people leave out. "ill", "well", "wed", "shell", "hell", "were", "its" are words of their own.
_CONTRACTIONS = {
    word.replace("'", ""): word
    for word in """
        ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how's i'm
        i've isn't it'd it'll might've mightn't must've mustn't needn't o'clock shan't she's should've shouldn't
        somebody's someone's something's that'll that's there'd there's they'd they'll they're they've wasn't
        we've weren't what'll what're what's what've when's where'd where's who'd who'll who's why's won't
        would've wouldn't y'all you'd you'll you're you've
    """.split()
}
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3})")
_PERIOD = re.compile(r"(?<!\d)\.|\.(?!\d)")


def normalise(answer: str) -> str:
    """Write an answer in lower case, without articles and punctuation, numbers as digits, contractions spelled whole.

    A mark beside a space goes, one between letters becomes a space ("black-and-white" -> "black and white"). What
    consists of marks alone is kept as it is. Takes time in proportion to the answer's length.
    """
    text = unicodedata.normalize("NFC", " ".join(answer.lower().split()))
    plain = " ".join(map(without_edge_marks, _THOUSANDS.sub("", text).split(" ")))
    _, marks = _plain_and_marks(plain.isascii())
    plain = marks.sub(" ", plain)
    plain = _PERIOD.sub("", plain).replace("_", " ")
    split = plain.split()
    kept = [_NUMBERS.get(word, word) for word in split if word not in _ARTICLES]
    # what is articles alone stays: "A" may be a choice's letter
    return " ".join(_CONTRACTIONS.get(word, word) for word in kept or split) or text


def without_edge_marks(word: str) -> str:
    """Return a word without the marks at its beginning and end; dots and apostrophes are no marks."""
    plain, _ = _plain_and_marks(word.isascii())
    first, last = plain.search(word), plain.search(word[::-1])
    return "" if first is None or last is None else word[first.start() : len(word) - last.start()]


@functools.cache
def _plain_and_marks(ascii_alone: bool) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Return expressions for a character of a word, signs around letters among them, and for a run of marks."""
    signs = "" if ascii_alone else "\u200c\u200d" + letter_signs()
    return re.compile(rf"[\w'.{signs}]"), re.compile(rf"[^\w\s'.{signs}]+")


@functools.cache
def letter_signs() -> str:
    """Return the signs that stand above, below or around letters, as Thai's and Hindi's vowels, which \\w leaves out.

    Finding them takes 12 ms, which a program that meets none is spared.
    """
    return "".join(chr(code) for code in range(0x300, 0x1F000) if unicodedata.category(chr(code))[0] == "M")
