from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from decoders import saved, weights

from serve.engines.base import Generation
from serve.errors import BadRequest, ModelError, ParseError
from serve.media.image import Image
from serve.media.masks import decode
from serve.models import MODELS
from serve.models.base import Turn
from serve.models.mask_decoder import VARIABLE, MaskDecoder
from serve.models.paligemma_tasks import parse_located_boxes, parse_segment
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


def test_prompts_have_no_template() -> None:
    assert text("vqa", VqaRequest(image=WIDE, question="what is it?")) == "answer en what is it?"
    assert text("caption", CaptionRequest(image=WIDE, lang="fr")) == "caption fr"
    assert text("detect", DetectRequest(image=WIDE, labels=["cat", "red dog"])) == "detect cat ; red dog"


def test_ocr_prompt_is_as_each_kind_was_trained() -> None:
    (mix,) = MIX.skills["ocr"].ask(OcrRequest(image=WIDE))
    (pt,) = MODELS["paligemma-3b-pt-448"].skills["ocr"].ask(OcrRequest(image=WIDE))
    assert (mix.text, pt.text) == ("answer en What is written in the image?", "ocr")
    assert MIX.skills["ocr"].parse([Generation(" \n")], OcrRequest(image=WIDE)).text == ""


def test_boxes_are_y_first_in_1023_bins() -> None:
    request = DetectRequest(image=WIDE, labels=["Cat", "dog"])
    reply = "<loc0100><loc0200><loc0300><loc0400> cat ; <loc0000> <loc0000><loc1023><loc1023> dog ; "
    boxes = parse_located_boxes([Generation(reply)], request).boxes
    assert [b.label for b in boxes] == ["Cat", "dog"]  # the label as it was asked
    assert boxes[0].box == (400, 100, 800, 300)
    assert boxes[1].box == (0, 0, 2046, 1023)


def test_empty_reply_has_no_boxes() -> None:
    assert parse_located_boxes([Generation("")], DetectRequest(image=WIDE, labels=["cat"])).boxes == []


@pytest.mark.parametrize(
    "reply", ["sorry", "<loc0300><loc0200><loc0100><loc0400> cat", "<loc0100><loc0200> cat", "<loc0001>" * 3]
)
def test_text_without_a_whole_box_raises_parse_error(reply: str) -> None:
    with pytest.raises(ParseError):
        parse_located_boxes([Generation(reply)], DetectRequest(image=WIDE, labels=["cat"]))


def test_box_cut_at_the_end_is_left_out() -> None:
    reply = "<loc0100><loc0200><loc0300><loc0400> cat ; <loc0000><loc00"
    assert len(parse_located_boxes([Generation(reply)], DetectRequest(image=WIDE, labels=["cat"])).boxes) == 1


def test_conversation_other_than_a_user_message_with_an_image_is_refused() -> None:
    assert MIX.converse([Turn("user", " detect cat ", has_image=True)]) == "detect cat"
    assert MIX.converse([Turn("user", "", has_image=True)]) == "caption en"
    for turns in ([Turn("system", "s"), Turn("user", "q", True)], [Turn("user", "q")]):
        with pytest.raises(BadRequest):
            MIX.converse(turns)


def test_labels_are_kept_without_duplicates_and_prompts_use_normalized_phrases() -> None:
    request = DetectRequest(image=WIDE, labels=["x;y", "cat", "cat", "an  Ox", " Red  dog. ", "The CAT", '"Cat".'])
    assert request.labels == ["x;y", "cat", "an  Ox", " Red  dog. "]
    assert request.phrases == ["x y", "cat", "an Ox", "Red dog"]
    assert text("detect", request) == "detect x y ; cat ; Ox ; Red dog"
    with pytest.raises(ValueError, match="must not be empty"):
        DetectRequest(image=WIDE, labels=["cat", " ; "])


LABELS = ["Red circle.", "the orange cross", '"red Star"', "a cat; sat"]
PLACE = "<loc0{0}00><loc0{0}00><loc0{0}50><loc0{0}50>"


def labels_in(reply: str, *, cut: bool = False, labels: list[str] = LABELS) -> list[str]:
    request = DetectRequest(image=WIDE, labels=labels)
    return [item.label for item in parse_located_boxes([Generation(reply, cut=cut)], request).boxes]


@pytest.mark.parametrize(
    ("spelling", "label"),
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
def test_label_in_any_spelling_comes_back_as_requested(spelling: str, label: str) -> None:
    assert labels_in(f"{PLACE.format(1)} {spelling}") == [label]
    assert labels_in(f"{PLACE.format(1)} {spelling} ; {PLACE.format(2)} red circle ; ", cut=True) == [
        label,
        "Red circle.",
    ]


def test_unrequested_label_is_left_out() -> None:
    assert labels_in(f"{PLACE.format(1)} dog ; {PLACE.format(2)} red star") == ['"red Star"']
    assert labels_in(f"{PLACE.format(1)} red ; {PLACE.format(2)} red star") == ['"red Star"']
    with pytest.raises(ParseError, match="that was asked for"):
        labels_in(f"{PLACE.format(1)} dog")


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
def test_cut_label_matches_the_only_label_with_that_beginning(end: str, label: str | None) -> None:
    reply = f"{PLACE.format(1)} red circle ; {PLACE.format(2)} {end}"
    assert labels_in(reply, cut=True) == ["Red circle.", *([label] if label else [])]


def test_label_that_begins_another_is_ambiguous_only_in_a_cut_reply() -> None:
    labels = ["red", "red circle"]
    reply = f"{PLACE.format(1)} red ; {PLACE.format(2)} red"
    assert labels_in(reply, labels=labels) == ["red", "red"]
    assert labels_in(reply, labels=labels, cut=True) == ["red"]
    assert labels_in(f"{reply} ;", labels=labels, cut=True) == ["red", "red"]


@pytest.mark.slow
@pytest.mark.parametrize("masks", [False, True])
def test_reply_cut_at_any_character_gives_whole_objects_only(masks: bool) -> None:
    codes = seg(*range(1, 17)) if masks else ""
    items = [
        f"{PLACE.format(index)}{codes} {label}"
        for index, label in enumerate(["red circle", "orange cross", "red star"])
    ]
    whole = " ; ".join(items)
    labels = LABELS[:3]
    full = parsed(whole, labels, masks)
    for end in range(len(whole) + 1):
        reply = whole[:end]
        # An object is complete when its locations and codes are there and its label can be no other.
        complete = sum(
            end >= whole.index(item) + len(item) - len(phrase) + least
            for item, phrase, least in zip(
                items, ("red circle", "orange cross", "red star"), (len("red c"), 1, len("red s")), strict=True
            )
        )
        if complete:
            assert parsed(reply, labels, masks) == full[:complete], reply
        else:
            with pytest.raises(ParseError, match="max_tokens"):
                parsed(reply, labels, masks)


def parsed(reply: str, labels: list[str], masks: bool) -> list[tuple[str, tuple[float, ...]]]:
    generations = [Generation(reply, cut=True)]
    if masks:
        boxes: Sequence[LabelledBox] = parse_segment(
            generations, SegmentRequest(image=WIDE, labels=labels), Rows()
        ).boxes
    else:
        boxes = parse_located_boxes(generations, DetectRequest(image=WIDE, labels=labels)).boxes
    return [(item.label, item.box) for item in boxes]


@pytest.mark.parametrize("masks", [False, True])
def test_repeated_object_is_returned_once(masks: bool) -> None:
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
    reply = " ; ".join([dog, *[cat, near] * 40, small, cat])
    objects = parsed(reply, ["Cat", "dog"], masks)
    assert [label for label, _ in objects] == [
        "dog",
        "Cat",
        "Cat",
    ]  # another label, or another place, is another object
    assert objects[1][1] == objects[0][1] != objects[2][1]


def test_masks_of_a_reply_are_bounded_by_the_image_area() -> None:
    wide = [f"<loc0000><loc{at * 12:04d}><loc1023><loc1023>" for at in range(40)]  # each is less like the first
    reply = " ; ".join(f"{place}{seg(*[1] * 16)} cat" for place in wide)
    objects = parsed(reply, ["cat"], True)
    assert 2 <= len(objects) <= 17
    assert sum((x1 - x0) * (y1 - y0) for _, (x0, y0, x1, y1) in objects) <= 16 * WIDE.width * WIDE.height


def seg(*codes: int) -> str:
    return "".join(f"<seg{code:03d}>" for code in codes)


class Rows(MaskDecoder):
    """A decoder that fills a mask's upper half if its first code is above 0, and its lower half if its last is."""

    def __init__(self) -> None:
        pass

    def __call__(self, codes: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        masks = np.full((len(codes), 64, 64), -1.0, np.float32)
        masks[:, :32] += 2 * (codes[:, 0] > 0)[:, None, None]
        masks[:, 32:] += 2 * (codes[:, 15] > 0)[:, None, None]
        return masks


def segmented(reply: str, *labels: str) -> list[tuple[str, tuple[float, ...], int]]:
    """Return label, box and area of the mask in pixels of each object."""
    result = parse_segment([Generation(reply)], SegmentRequest(image=WIDE, labels=list(labels)), Rows())
    return [(item.label, item.box, int(decode(item.mask).sum())) for item in result.boxes]


BOX = "<loc0100><loc0200><loc0300><loc0400>"
UPPER = seg(1, *[0] * 15)


def test_masks_are_pasted_into_their_boxes() -> None:
    objects = segmented(f"{BOX}{UPPER} cat ; <loc0000><loc0000><loc1023><loc1023>{seg(*[1] * 16)} Dog", "Cat", "dog")
    assert objects == [("Cat", (400, 100, 800, 300), 400 * 100), ("dog", (0, 0, 2046, 1023), 2046 * 1023)]
    request = SegmentRequest(image=WIDE, labels=["cat"])
    (mask,) = parse_segment([Generation(f"{BOX}{UPPER} cat")], request, Rows()).boxes
    assert decode(mask.mask)[100:200, 400:800].all()


@pytest.mark.parametrize("reply", [f"{BOX} {UPPER.replace('><', '> <')} cat", f"{BOX}{UPPER}", f"{BOX}{UPPER}cat ;"])
def test_spaces_between_tokens_and_a_missing_label_are_accepted(reply: str) -> None:
    assert segmented(reply, "cat") == [("cat", (400, 100, 800, 300), 400 * 100)]


@pytest.mark.parametrize(
    "reply",
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
def test_reply_that_the_official_evaluator_calls_invalid_raises_parse_error(reply: str) -> None:
    with pytest.raises(ParseError):
        segmented(reply, "cat")


def test_invalid_mask_among_valid_masks_is_left_out() -> None:
    assert [item[0] for item in segmented(f"{BOX}{seg(1)} cat ; {BOX}{UPPER} dog", "cat", "dog")] == ["dog"]
    assert segmented("", "cat") == []


def test_segment_without_a_decoder_is_refused_before_generation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = SegmentRequest(image=WIDE, labels=["cat", "dog"])
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(ModelError, match="no mask decoder") as error:
        MIX.skills["segment"].ask(request)
    assert error.value.code == "decoder_missing"
    monkeypatch.setenv(VARIABLE, saved(tmp_path, weights()))
    (prompt,) = MIX.skills["segment"].ask(request)
    assert prompt.text == "segment cat ; dog"
    (item,) = MIX.skills["segment"].parse([Generation(f"{BOX}{UPPER} dog")], request).boxes
    assert item.label == "dog" and item.mask.size == (1023, 2046)
