"""Text spotting: a family's own prompt, lines with their places, and models that cannot."""

import json
from typing import Any

import numpy as np
import pytest
from served import LLAVA, URL, calling, plain

from serve.client.board import placed_items
from serve.engines.base import Generation
from serve.errors import ParseError
from serve.media.image import Image
from serve.models import MODELS
from serve.models.base import with_limits
from serve.tasks.ocr import OcrRequest, OcrResult

IMAGE = Image(np.zeros((100, 200, 3), np.uint8))
SPOTTED = OcrRequest(image=IMAGE, boxes=True)
WRITTEN = json.dumps(
    [
        {"bbox_2d": [100, 100, 500, 300], "text_content": 'say "EXIT"'},
        {"bbox_2d": [100, 500, 500, 700], "text_content": "12"},
        {"bbox_2d": [0, 0, 9, 9], "text_content": " "},
    ]
)


def read(model: str, text: str, request: OcrRequest = SPOTTED) -> OcrResult:
    result = MODELS[model].skills["ocr"].parse([Generation(text)], request)
    assert isinstance(result, OcrResult)
    return result


def test_prompt_of_qwen_is_its_own_only_where_boxes_are_wanted() -> None:
    skill = MODELS["qwen3-vl-8b"].skills["ocr"]
    (spot,), (plain,) = skill.ask(SPOTTED), skill.ask(OcrRequest(image=IMAGE))
    assert "Spotting all the text in the image with line-level, and output in JSON format." in spot.text
    assert "Read all texts in the image" in plain.text and spot.sampling.logprobs
    assert read("qwen3-vl-8b", "EXIT", OcrRequest(image=IMAGE)).model_dump() == {"text": "EXIT"}


def test_line_has_its_text_and_its_place_and_one_without_text_is_left_out() -> None:
    result = read("qwen3-vl-8b", f"```json\n{WRITTEN}\n```")
    assert result.text == 'say "EXIT"\n12' and result.boxes is not None
    assert [(line.label, line.box) for line in result.boxes] == [
        ('say "EXIT"', (20, 10, 100, 30)),
        ("12", (20, 50, 100, 70)),
    ]
    assert [line["label"] for line in placed_items(result.model_dump())] == ['say "EXIT"', "12"]  # which are drawn


def test_half_a_surrogate_pair_stays_as_written() -> None:
    result = read("qwen3-vl-8b", json.dumps([{"bbox_2d": [0, 0, 9, 9], "text_content": "a \ud83d"}]))
    assert result.model_dump_json() and result.text == "a \\ud83d"


def test_places_in_pixels_follow_the_limits_of_the_engine() -> None:
    skill = with_limits(MODELS["qwen2.5-vl-7b"], (28, 784, 1600)).skills["ocr"]  # the picture becomes 56 by 28
    text = '[{"bbox_2d": [14, 7, 28, 14], "text_content": "EXIT"}]'
    result = skill.parse([Generation(text)], SPOTTED)
    assert isinstance(result, OcrResult) and result.boxes is not None and skill.spots
    assert result.boxes[0].box == (50, 25, 100, 50)


def test_hunyuan_ocr_spots_by_its_own_keys_after_its_empty_system_message() -> None:
    (prompt,) = MODELS["hunyuan-ocr"].skills["ocr"].ask(SPOTTED)
    assert [message["role"] for message in json.loads(prompt.text)] == ["system", "user"]
    result = read("hunyuan-ocr", '[{"box": [0, 0, 500, 500], "text": "出口"}]')
    assert result.boxes is not None and (result.text, result.boxes[0].box) == ("出口", (0, 0, 100, 50))


def test_empty_list_is_no_text_and_a_text_without_places_is_an_error() -> None:
    assert read("qwen3-vl-8b", "[]").model_dump() == {"text": "", "boxes": []}
    with pytest.raises(ParseError, match="no coordinates"):
        read("qwen3-vl-8b", "EXIT")


@pytest.mark.parametrize(("more", "param"), [({}, "boxes"), ({"models": [LLAVA]}, "models")])
async def test_model_that_cannot_spot_is_refused_by_name(more: dict[str, Any], param: str) -> None:
    async with calling(plain()) as client:
        refused = await client.post("/v1/tasks/ocr", json={"image": URL, "boxes": True, **more})
    error = refused.json()["error"]
    assert (refused.status_code, error["param"]) == (400, param)
    assert "cannot say where it stands" in error["message"]
