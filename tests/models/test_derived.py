"""Points made of boxes, counts made of boxes, points and answers."""

import json
from typing import Any

import numpy as np
import pytest

from serve.engines.base import Generation
from serve.errors import ParseError
from serve.media.image import Image
from serve.models import MODELS
from serve.models.base import with_limits
from serve.models.contracts import MOLMO2, QWEN3_VL, QWEN3_VL_POINTS
from serve.models.instructed import chat_messages, instructed_skills
from serve.tasks.count import CountRequest, CountResult
from serve.tasks.point import PointRequest
from serve.tasks.points import PointResult

IMAGE = Image(np.zeros((100, 200, 3), np.uint8))
BOXES = "<loc0000><loc0000><loc1023><loc0512> cat ; <loc0512><loc0512><loc1023><loc1023> cat"


def test_point_of_a_detecting_model_is_its_boxes_centre() -> None:
    skill = MODELS["toy-paligemma"].skills["point"]
    request = PointRequest(image=IMAGE, labels=["Cat"])
    assert [prompt.text for prompt in skill.ask(request)] == ["detect Cat"] and skill.basis == "derived"
    result = skill.parse([Generation(BOXES)], request)
    assert isinstance(result, PointResult) and result.size == (100, 200)
    assert [(point.label, point.point) for point in result.points] == [("Cat", (50.05, 50)), ("Cat", (150.05, 75.03))]


def test_count_of_a_detecting_model_is_the_number_of_its_boxes_and_none_where_the_reply_is_cut() -> None:
    skill = MODELS["toy-paligemma"].skills["count"]
    request = CountRequest(image=IMAGE, question="How many cats are there?")
    result = skill.parse([Generation(BOXES)], request)
    assert isinstance(result, CountResult) and (result.count, result.by, len(result.points)) == (2, "boxes", 2)
    with pytest.raises(ParseError, match="before all were counted"):
        skill.parse([Generation(BOXES, cut=True)], request)


def test_count_of_llava_is_its_answer_to_how_many() -> None:
    skill = MODELS["toy-llava"].skills["count"]
    request = CountRequest(image=IMAGE, question="red cross")
    (prompt,) = skill.ask(request)
    assert "How many red crosses are there?\nAnswer the question" in prompt.text
    result = skill.parse([Generation(" 2")], request)
    assert isinstance(result, CountResult) and (result.count, result.by) == (2, "words")


def test_instructed_model_points_and_counts_by_its_contract() -> None:
    skills = instructed_skills(chat_messages, boxes=QWEN3_VL, points=QWEN3_VL_POINTS)
    request = PointRequest(image=IMAGE, labels=["cat", "dog"])
    (prompt,) = skills["point"].ask(request)
    assert '"cat", "dog"' in prompt.text.replace('\\"', '"') and "point_2d" in prompt.text
    reply = '[{"point_2d": [500, 500], "label": "cats"}, {"point_2d": [100, 200], "label": "dog"}]'
    result = skills["point"].parse([Generation(reply)], request)
    assert isinstance(result, PointResult)
    assert [(point.label, point.point) for point in result.points] == [("cat", (100, 50)), ("dog", (20, 20))]
    single = CountRequest(image=IMAGE, question="How many cats are there?")
    count = skills["count"].parse([Generation('[{"point_2d": [500, 500]}, {"point_2d": [9, 9]}]')], single)
    assert isinstance(count, CountResult) and (count.count, count.by) == (2, "points")
    nothing = skills["count"].parse([Generation("[]")], single)
    assert isinstance(nothing, CountResult) and nothing.count == 0
    with pytest.raises(ParseError, match="not those of the model's coordinate contract"):
        skills["count"].parse([Generation('[{"point_2d": [5000, 500]}]')], single)


@pytest.mark.parametrize(("limits", "middle"), [(None, [98, 56]), ((28, 784, 1600), [28, 14])])
def test_points_and_counts_in_pixels_follow_the_limits_of_the_engine(limits: Any, middle: list[int]) -> None:
    model = with_limits(MODELS["qwen2.5-vl-3b"], limits)  # the picture of 200 by 100 becomes 196 by 112, or 56 by 28
    text = json.dumps([{"point_2d": middle, "label": "cat"}])
    request = CountRequest(image=IMAGE, question="How many cats are there?")
    count = model.skills["count"].parse([Generation(text)], request)
    assert isinstance(count, CountResult) and (count.by, count.points[0].point) == ("points", (100, 50))


def test_points_of_molmo_have_a_prompt_for_each_label() -> None:
    skill = instructed_skills(chat_messages, points=MOLMO2)["point"]
    request = PointRequest(image=IMAGE, labels=["cat", "dog"])
    prompts = skill.ask(request)
    assert ["Point to cat" in prompts[0].text, "Point to dog" in prompts[1].text] == [True, True]
    assert skill.prompts(request) == 2
    replies = [Generation('<points coords="1 1 250 500">cat</points>'), Generation("There are none.")]
    result = skill.parse(replies, request)
    assert isinstance(result, PointResult) and [point.point for point in result.points] == [(50, 50)]
