import numpy as np
import pytest

from serve.engines.base import Spoken
from serve.errors import BadRequest, ParseError
from serve.image import Image
from serve.models import MODELS
from serve.models.base import Turn
from serve.models.paligemma import parse_detect
from serve.tasks.caption import CaptionRequest
from serve.tasks.detect import DetectRequest
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


def test_labels_keep_their_order_once_each_without_separators() -> None:
    assert DetectRequest(image=WIDE, labels=["a;b", "cat", "cat"]).labels == ["a b", "cat"]
