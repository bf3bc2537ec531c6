from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from decoders import saved, weights

from serve.engines.base import Spoken
from serve.errors import BadRequest, ModelError, ParseError
from serve.media.image import Image
from serve.media.masks import decode
from serve.models import MODELS
from serve.models.base import Turn
from serve.models.mask_decoder import VARIABLE, MaskDecoder
from serve.models.paligemma_tasks import parse_detect, parse_segment
from serve.tasks.boxes import LabelledBox
from serve.tasks.caption import CaptionRequest
from serve.tasks.detect import DetectRequest
from serve.tasks.ocr import OcrRequest
from serve.tasks.segment import SegmentRequest
from serve.tasks.vqa import VqaRequest

WIDE = Image(np.zeros((1023, 2046, 3), np.uint8))
MIX = MODELS["paligemma-3b-mix-448"]


def text(task: str, request: object) -> str:
    (prompt,) = MIX.skills[task].ask(request)
    return prompt.text


def test_prompts_are_bare() -> None:
    assert text("vqa", VqaRequest(image=WIDE, question="what is it?")) == "answer en what is it?"
    assert text("caption", CaptionRequest(image=WIDE, lang="fr")) == "caption fr"
    assert text("detect", DetectRequest(image=WIDE, labels=["cat", "red dog"])) == "detect cat ; red dog"


def test_text_is_asked_for_as_each_kind_was_trained() -> None:
    (mix,) = MIX.skills["ocr"].ask(OcrRequest(image=WIDE))
    (pt,) = MODELS["paligemma-3b-pt-448"].skills["ocr"].ask(OcrRequest(image=WIDE))
    assert (mix.text, pt.text) == ("answer en What is written in the image?", "ocr")
    assert MIX.skills["ocr"].parse([Spoken(" \n")], OcrRequest(image=WIDE)).text == ""


def test_boxes_are_y_first_in_1023_bins() -> None:
    asked = DetectRequest(image=WIDE, labels=["Cat", "dog"])
    said = "<loc0100><loc0200><loc0300><loc0400> cat ; <loc0000> <loc0000><loc1023><loc1023> dog ; "
    boxes = parse_detect([Spoken(said)], asked).boxes
    assert [b.label for b in boxes] == ["Cat", "dog"]  # the label as it was asked
    assert boxes[0].box == (400, 100, 800, 300)
    assert boxes[1].box == (0, 0, 2046, 1023)


def test_an_empty_reply_means_nothing_found() -> None:
    assert parse_detect([Spoken("")], DetectRequest(image=WIDE, labels=["cat"])).boxes == []


@pytest.mark.parametrize(
    "words", ["sorry", "<loc0300><loc0200><loc0100><loc0400> cat", "<loc0100><loc0200> cat", "<loc0001>" * 3]
)
def test_words_without_a_whole_box_are_a_parse_error(words: str) -> None:
    with pytest.raises(ParseError):
        parse_detect([Spoken(words)], DetectRequest(image=WIDE, labels=["cat"]))


def test_a_box_cut_short_at_the_end_is_left_out() -> None:
    said = "<loc0100><loc0200><loc0300><loc0400> cat ; <loc0000><loc00"
    assert len(parse_detect([Spoken(said)], DetectRequest(image=WIDE, labels=["cat"])).boxes) == 1


def test_conversation_is_one_user_message_with_an_image() -> None:
    assert MIX.converse([Turn("user", " detect cat ", pictured=True)]) == "detect cat"
    assert MIX.converse([Turn("user", "", pictured=True)]) == "caption en"
    for turns in ([Turn("system", "s"), Turn("user", "q", True)], [Turn("user", "q")]):
        with pytest.raises(BadRequest):
            MIX.converse(turns)


def test_labels_stay_as_they_are_asked_each_once_and_a_model_hears_plain_phrases() -> None:
    asked = DetectRequest(image=WIDE, labels=["x;y", "cat", "cat", "an  Ox", " Red  dog. ", "The CAT", '"Cat".'])
    assert asked.labels == ["x;y", "cat", "an  Ox", " Red  dog. "]
    assert asked.phrases == ["x y", "cat", "an Ox", "Red dog"]
    assert text("detect", asked) == "detect x y ; cat ; Ox ; Red dog"
    with pytest.raises(ValueError, match="must not be empty"):
        DetectRequest(image=WIDE, labels=["cat", " ; "])


LABELS = ["Red circle.", "the orange cross", '"red Star"', "a cat; sat"]
PLACE = "<loc0{0}00><loc0{0}00><loc0{0}50><loc0{0}50>"


def labels_found(said: str, *, cut: bool = False, labels: list[str] = LABELS) -> list[str]:
    return [
        found.label for found in parse_detect([Spoken(said, cut=cut)], DetectRequest(image=WIDE, labels=labels)).boxes
    ]


@pytest.mark.parametrize(
    ("words", "label"),
    [
        ("red circle", "Red circle."),
        ("RED  CIRCLE.", "Red circle."),
        ("a red circle", "Red circle."),
        ("orange cross.", "the orange cross"),
        ("Orange Cross", "the orange cross"),
        ("red star", '"red Star"'),
        ("cat sat", "a cat; sat"),
        ("the cat sat!", "a cat; sat"),
    ],
)
def test_a_label_comes_back_as_it_was_asked_however_it_is_said(words: str, label: str) -> None:
    assert labels_found(f"{PLACE.format(1)} {words}") == [label]
    assert labels_found(f"{PLACE.format(1)} {words} ; {PLACE.format(2)} red circle ; ", cut=True) == [
        label,
        "Red circle.",
    ]


def test_what_was_not_asked_for_is_left_out() -> None:
    assert labels_found(f"{PLACE.format(1)} dog ; {PLACE.format(2)} red star") == ['"red Star"']
    assert labels_found(f"{PLACE.format(1)} red ; {PLACE.format(2)} red star") == ['"red Star"']
    with pytest.raises(ParseError, match="that was asked for"):
        labels_found(f"{PLACE.format(1)} dog")


@pytest.mark.parametrize(
    ("end", "label"),
    [
        ("o", "the orange cross"),
        ("the or", "the orange cross"),
        ("the", "the orange cross"),
        ("red c", "Red circle."),
        ("red s", '"red Star"'),
        ("red", None),
        ("", None),
        ("re", None),
        ("a ca", "a cat; sat"),
        ("red stars", None),
    ],
)
def test_a_label_that_is_cut_is_the_one_that_begins_so(end: str, label: str | None) -> None:
    said = f"{PLACE.format(1)} red circle ; {PLACE.format(2)} {end}"
    assert labels_found(said, cut=True) == ["Red circle.", *([label] if label else [])]


def test_a_whole_label_that_begins_another_is_ambiguous_only_where_the_reply_was_cut() -> None:
    labels = ["red", "red circle"]
    said = f"{PLACE.format(1)} red ; {PLACE.format(2)} red"
    assert labels_found(said, labels=labels) == ["red", "red"]
    assert labels_found(said, labels=labels, cut=True) == ["red"]
    assert labels_found(f"{said} ;", labels=labels, cut=True) == ["red", "red"]


@pytest.mark.parametrize("masks", [False, True])
def test_a_reply_cut_anywhere_gives_its_whole_objects_and_never_half_of_one(masks: bool) -> None:
    codes = seg(*range(1, 17)) if masks else ""
    items = [
        f"{PLACE.format(at)}{codes} {words}" for at, words in enumerate(["red circle", "orange cross", "red star"])
    ]
    whole = " ; ".join(items)
    labels = LABELS[:3]
    full = parsed(whole, labels, masks)
    for end in range(len(whole) + 1):
        said = whole[:end]
        # An item is whole where its places and codes are and its label can be no other.
        heard = sum(
            end >= whole.index(item) + len(item) - len(words) + least
            for item, words, least in zip(
                items, ("red circle", "orange cross", "red star"), (len("red c"), 1, len("red s")), strict=True
            )
        )
        if heard:
            assert parsed(said, labels, masks) == full[:heard], said
        else:
            with pytest.raises(ParseError, match="max_tokens"):
                parsed(said, labels, masks)


def parsed(said: str, labels: list[str], masks: bool) -> list[tuple[str, tuple[float, ...]]]:
    spoken = [Spoken(said, cut=True)]
    if masks:
        boxes: Sequence[LabelledBox] = parse_segment(spoken, SegmentRequest(image=WIDE, labels=labels), Rows()).boxes
    else:
        boxes = parse_detect(spoken, DetectRequest(image=WIDE, labels=labels)).boxes
    return [(found.label, found.box) for found in boxes]


@pytest.mark.parametrize("masks", [False, True])
def test_an_object_said_again_and_again_is_one(masks: bool) -> None:
    codes = seg(*range(1, 17)) if masks else ""
    cat, near, dog, small = (
        f"{place}{codes} {name}"
        for place, name in (
            ("<loc0100><loc0100><loc0600><loc0500>", "a cat"),
            ("<loc0101><loc0100><loc0601><loc0502>", "cat."),
            ("<loc0100><loc0100><loc0600><loc0500>", "dog"),
            ("<loc0100><loc0100><loc0500><loc0400>", "cat"),
        )
    )
    said = " ; ".join([dog, *[cat, near] * 40, small, cat])
    found = parsed(said, ["Cat", "dog"], masks)
    assert [label for label, _ in found] == ["dog", "Cat", "Cat"]  # another label, or another place, is another object
    assert found[1][1] == found[0][1] != found[2][1]


def test_the_masks_of_one_reply_are_bounded_by_the_pictures_area() -> None:
    wide = [f"<loc0000><loc{at * 12:04d}><loc1023><loc1023>" for at in range(40)]  # each is less like the first
    said = " ; ".join(f"{place}{seg(*[1] * 16)} cat" for place in wide)
    found = parsed(said, ["cat"], True)
    assert 2 <= len(found) <= 17
    assert sum((x1 - x0) * (y1 - y0) for _, (x0, y0, x1, y1) in found) <= 16 * WIDE.width * WIDE.height


def seg(*codes: int) -> str:
    return "".join(f"<seg{code:03d}>" for code in codes)


class Rows(MaskDecoder):
    """A decoder that makes the upper half of each mask of its first code and the lower half of its last: 1 is in."""

    def __init__(self) -> None:
        pass

    def __call__(self, codes: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        made = np.full((len(codes), 64, 64), -1.0, np.float32)
        made[:, :32] += 2 * (codes[:, 0] > 0)[:, None, None]
        made[:, 32:] += 2 * (codes[:, 15] > 0)[:, None, None]
        return made


def segmented(said: str, *labels: str) -> list[tuple[str, tuple[float, ...], int]]:
    """Label, box and how many pixels of the mask."""
    result = parse_segment([Spoken(said)], SegmentRequest(image=WIDE, labels=list(labels)), Rows())
    return [(found.label, found.box, int(decode(found.mask).sum())) for found in result.boxes]


BOX = "<loc0100><loc0200><loc0300><loc0400>"
UPPER = seg(1, *[0] * 15)


def test_masks_are_pasted_into_their_boxes() -> None:
    found = segmented(f"{BOX}{UPPER} cat ; <loc0000><loc0000><loc1023><loc1023>{seg(*[1] * 16)} Dog", "Cat", "dog")
    assert found == [("Cat", (400, 100, 800, 300), 400 * 100), ("dog", (0, 0, 2046, 1023), 2046 * 1023)]
    request = SegmentRequest(image=WIDE, labels=["cat"])
    (mask,) = parse_segment([Spoken(f"{BOX}{UPPER} cat")], request, Rows()).boxes
    assert decode(mask.mask)[100:200, 400:800].all()


@pytest.mark.parametrize("words", [f"{BOX} {UPPER.replace('><', '> <')} cat", f"{BOX}{UPPER}", f"{BOX}{UPPER}cat ;"])
def test_spaces_between_tokens_and_a_missing_label_do_no_harm(words: str) -> None:
    assert segmented(words, "cat") == [("cat", (400, 100, 800, 300), 400 * 100)]


@pytest.mark.parametrize(
    "words",
    [
        "sorry",
        f"{BOX} cat",
        f"{BOX}{seg(*[1] * 15)} cat",
        f"{BOX}{seg(*[1] * 17)} cat",
        f"{BOX}{seg(*[1] * 15, 128)} cat",
        f"<loc0300><loc0200><loc0100><loc0400>{UPPER} cat",
        f"<loc0100><loc0400><loc0300><loc0400>{UPPER} cat",
        f"<loc0100><loc0200><loc0300>{UPPER} cat",
    ],
)
def test_what_the_official_evaluator_calls_invalid_is_no_mask(words: str) -> None:
    with pytest.raises(ParseError):
        segmented(words, "cat")


def test_one_invalid_mask_among_others_is_left_out() -> None:
    assert [found[0] for found in segmented(f"{BOX}{seg(1)} cat ; {BOX}{UPPER} dog", "cat", "dog")] == ["dog"]
    assert segmented("", "cat") == []


def test_segmenting_needs_the_decoder_and_says_so_before_anything_is_spoken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = SegmentRequest(image=WIDE, labels=["cat", "dog"])
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(ModelError, match="no mask decoder") as refused:
        MIX.skills["segment"].ask(request)
    assert refused.value.code == "decoder_missing"
    monkeypatch.setenv(VARIABLE, saved(tmp_path, weights()))
    (prompt,) = MIX.skills["segment"].ask(request)
    assert prompt.text == "segment cat ; dog"
    (found,) = MIX.skills["segment"].parse([Spoken(f"{BOX}{UPPER} dog")], request).boxes
    assert found.label == "dog" and found.mask.size == (1023, 2046)
