"""Qwen's families: their prompts, and boxes that come back to where they were drawn."""

import json
from typing import Any

import numpy as np
import pytest

from serve.engines.base import Generation, PictureLimits, ReasoningOptions
from serve.engines.checkpoint_facts import CheckpointFacts
from serve.engines.fake import FakeEngine
from serve.engines.vllm.multimodal import picture_limits
from serve.media.image import Image
from serve.models import MODELS
from serve.models.base import Model, with_limits
from serve.models.contracts import Multiples
from serve.models.own import Own, own
from serve.models.reasoning import reasoning_refusal
from serve.tasks.boxes import DetectResult
from serve.tasks.count import CountRequest, CountResult
from serve.tasks.detect import DetectRequest
from serve.tasks.ocr import OcrRequest
from serve.tasks.point import PointRequest
from serve.tasks.points import PointResult
from serve.tasks.reply import Reply
from serve.tasks.vqa import VqaRequest
from serve.worker import Worker

SIZES = [(640, 480), (97, 41), (33, 35), (4000, 21), (19, 3600), (2999, 4001), (28, 28), (1, 150)]
FAMILIES = ["qwen2.5-vl-7b", "qwen3-vl-8b", "qwen3.8-27b"]


def picture(width: int, height: int) -> Image:
    return Image(np.zeros((height, width, 3), np.uint8))


def words(model: Model, task: str, request: Any) -> str:
    """Return the text beside the image of a task's only prompt."""
    (prompt,) = model.skills[task].ask(request)
    (message,) = json.loads(prompt.text)
    assert [part["type"] for part in message["content"]] == ["image_url", "text"]
    return str(message["content"][1]["text"])


@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_are_those_of_qwens_evaluations_and_cookbooks(name: str) -> None:
    model, image = MODELS[name], picture(64, 48)
    located = words(model, "detect", DetectRequest(image=image, labels=["red car", "dog"]))
    assert located == (
        "Locate every instance that belongs to the following categories: 'red car, dog'. Report bbox coordinates in "
        "JSON format."
    )
    assert words(model, "ocr", OcrRequest(image=image)) == "Read all texts in the image, output in lines."
    question = words(model, "vqa", VqaRequest(image=image, question="how many?"))
    assert question == "how many?\nPlease try to answer the question with short words or phrases if possible."


@pytest.mark.parametrize("name", FAMILIES)
def test_prompt_for_points_has_the_cookbooks_words_and_points_are_counted(name: str) -> None:
    model, image = MODELS[name], picture(300, 200)
    located = words(model, "point", PointRequest(image=image, labels=["dog", "cat"]))
    assert located.startswith("Locate every instance that belongs to the following categories with points: 'dog, cat'.")
    assert located.endswith('{"point_2d": [x, y], "label": "..."}')
    contract = model.skills["point"].contract
    assert contract is not None
    spoken = Generation(contract.format([("dog", (30, 40)), ("dog", (210, 160))], image_size := (300, 200)))
    result = model.skills["point"].parse([spoken], PointRequest(image=image, labels=["dog"]))
    assert isinstance(result, PointResult)
    frame = contract.frame(image_size)
    for point, true in zip(result.points, [(30, 40), (210, 160)], strict=True):
        assert abs(point.point[0] - true[0]) <= frame.width / frame.across
        assert abs(point.point[1] - true[1]) <= frame.height / frame.down
    counted = model.skills["count"].parse([spoken], CountRequest(image=image, question="dogs"))
    assert isinstance(counted, CountResult) and (counted.count, counted.by) == (2, "points")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", FAMILIES)
def test_box_drawn_on_an_odd_picture_comes_back_within_one_unit(name: str, size: tuple[int, int]) -> None:
    model, (width, height) = MODELS[name], size
    skill = model.skills["detect"]
    assert skill.contract is not None
    frame = skill.contract.frame(size)
    box = (0.1 * width, 0.2 * height, 0.7 * width, 0.9 * height)
    text = "```json\n" + skill.contract.format([("dog", box)], size) + "\n```"
    result = skill.parse([Generation(text)], DetectRequest(image=picture(width, height), labels=["Dog"]))
    assert isinstance(result, DetectResult)
    units = (frame.width / frame.across, frame.height / frame.down) * 2
    assert all(abs(a - b) <= unit for a, b, unit in zip(result.boxes[0].box, box, units, strict=True))


LIMITS = PictureLimits(28, 56 * 56, 28 * 28 * 64)
PIXELS = '[{"bbox_2d": [0, 0, 126, 84], "label": "dog"}]'
"""Of a picture of 640 x 480 that is resized to 252 x 168."""


async def box_of(model: Model, limits: PictureLimits | None) -> tuple[float, ...]:
    """Return the box that a model reads in PIXELS, whose engine resizes pictures within these limits."""
    engine = FakeEngine(PIXELS)
    engine.picture_limits = limits  # type: ignore[attr-defined]
    worker = Worker(model, engine)
    await worker.start()
    request = DetectRequest(image=picture(640, 480), labels=["dog"])
    reply = [event async for event in worker.answer("detect", request)][-1]
    assert isinstance(reply, Reply) and isinstance(reply.result, DetectResult)
    return reply.result.boxes[0].box


async def test_pixels_are_read_by_the_limits_that_the_engine_has() -> None:
    assert await box_of(MODELS["qwen2.5-vl-3b"], LIMITS) == (0, 0, 320, 240)
    assert await box_of(MODELS["qwen2.5-vl-3b"], None) == pytest.approx((0, 0, 125.22, 84.71), abs=0.01)
    spec = {"name": "mine", "like": "qwen2.5-vl-3b", "checkpoint": "/x", "prompts": {"detect": "find {labels}"}}
    assert await box_of(own(Own.model_validate(spec)), LIMITS) == (0, 0, 320, 240)


@pytest.mark.parametrize(
    ("given", "limits"),
    [
        (None, (28, 3136, 12_845_056)),
        ({"max_pixels": 1_003_520}, (28, 3136, 1_003_520)),
        ({"size": {"shortest_edge": 784, "longest_edge": 50_176}}, (28, 784, 50_176)),
        ({"size": {"longest_edge": 50_176}, "max_pixels": 100_352, "min_pixels": 784}, (28, 784, 100_352)),
    ],
)
def test_limits_are_those_of_the_files_unless_the_deployment_sets_some(
    given: Any, limits: tuple[int, int, int]
) -> None:
    facts = CheckpointFacts(picture_pixels=(3136, 12_845_056), picture_unit=28)
    assert picture_limits(facts, given) == limits
    assert picture_limits(CheckpointFacts(picture_size=336), given) is None


def test_thousandths_do_not_depend_on_the_limits_of_an_engine() -> None:
    model = MODELS["qwen3-vl-8b"]
    assert with_limits(model, LIMITS).skills["detect"] is model.skills["detect"]
    for task in ("detect", "point", "count"):
        skill = with_limits(MODELS["qwen2.5-vl-3b"], LIMITS).skills[task]
        assert skill.contract is not None and skill.contract.resized == Multiples(*LIMITS)
        assert skill.basis == MODELS["qwen2.5-vl-3b"].skills[task].basis


def test_reasoning_is_off_without_a_request_for_reasoning() -> None:
    reasoning = [
        model.reasoning for name, model in MODELS.items() if name.startswith(("qwen3.5", "qwen3.6", "qwen3.8"))
    ]
    assert len(reasoning) == 11
    assert all(each is not None and each.switchable and each.on is False for each in reasoning)


def test_thinking_edition_reasons_before_each_answer_and_takes_a_budget() -> None:
    thinking, instruct = MODELS["qwen3-vl-8b-thinking"], MODELS["qwen3-vl-8b"]
    assert thinking.checkpoint.hub == "Qwen/Qwen3-VL-8B-Thinking" and instruct.reasoning is None
    assert thinking.checkpoint.expect == instruct.checkpoint.expect
    refused = reasoning_refusal(thinking.reasoning, ReasoningOptions("none"))
    assert refused == ("reasoning_effort", "cannot turn its reasoning on or off")
    assert reasoning_refusal(thinking.reasoning, ReasoningOptions("high", budget=64)) is None
    reply = '<think>\nLeft of it.\n</think>\n\n[{"bbox_2d": [0, 0, 500, 500], "label": "dog"}]'
    request = DetectRequest(image=picture(200, 100), labels=["dog"])
    result = thinking.skills["detect"].parse([Generation(reply)], request)
    assert isinstance(result, DetectResult) and result.boxes[0].box == (0, 0, 100, 50)
