"""Gemma 3 and 4: how each is asked for boxes, and what their cards say."""

import json

import numpy as np
import pytest

from serve.engines.base import Generation
from serve.media.image import Image
from serve.models import MODELS
from serve.tasks.detect import DetectRequest

PICTURE = Image(np.zeros((300, 640, 3), np.uint8))
REQUEST = DetectRequest(image=PICTURE, labels=["cat", "red ball"])
REPLY = '```json\n[{"box_2d": [100, 250, 500, 750], "label": "cat"}]\n```'


def instruction(name: str) -> str:
    (prompt,) = MODELS[name].skills["detect"].ask(REQUEST)
    (message,) = json.loads(prompt.text)
    return str(message["content"][1]["text"])


def test_gemma4_gets_its_makers_words_and_gemma3_the_form() -> None:
    assert instruction("gemma-4-e2b") == "detect cat and red ball, output only ```json"
    words = instruction("gemma-3-4b")
    assert '"box_2d": [y0, x0, y1, x1]' in words and "0 to 1000" in words
    assert "detect" in MODELS["gemma-4-31b"].card.tasks and "detect (prompted)" in MODELS["gemma-3-4b"].card.tasks


@pytest.mark.parametrize("name", ["gemma-3-27b", "gemma-4-26b-a4b"])
def test_boxes_have_y_first_in_thousandths_of_the_picture(name: str) -> None:
    (box,) = MODELS[name].skills["detect"].parse([Generation(REPLY)], REQUEST).boxes
    assert box.label == "cat" and box.box == (160, 30, 480, 150)
    nothing = MODELS[name].skills["detect"].parse([Generation("```json\n[]\n```")], REQUEST)
    assert nothing.boxes == []


def test_card_of_gemma4_without_a_vision_tower_says_not_served() -> None:
    unified = [model for model in MODELS.values() if "Unified" in str(model.checkpoint.expect)]
    assert [model.name for model in unified] == ["gemma-4-12b"] and unified[0].card.checked.startswith("Not served")
    assert unified[0].reasoning is not None and unified[0].reasoning.on is False
