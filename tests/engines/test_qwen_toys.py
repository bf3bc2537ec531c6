"""Toys in Qwen's formats on the real engine: boxes in pictures of odd sizes come back where they were drawn.

One writes pixels of the picture as it was resized, one thousandths; `serve/toy/training/qwen.py` trained them.
"""

from pathlib import Path

import numpy as np
import pytest
from inprocess import engine
from lazy_module import LazyModule

from serve.engines.base import Generation
from serve.media.geometry import iou
from serve.media.image import Image
from serve.tasks.boxes import DetectResult
from serve.tasks.detect import DetectRequest
from serve.toy.world import Box, Scene, Shape, draw

qwen, qwen_lessons = LazyModule("serve.toy.training.qwen"), LazyModule("serve.toy.training.qwen_lessons")

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore")]

TOYS = Path(__file__).parent / "toys"
PICTURES: dict[tuple[int, int], tuple[str, Box]] = {
    (301, 97): ("red", (0.55, 0.2, 0.9, 0.8)),
    (123, 391): ("blue", (0.1, 0.62, 0.7, 0.95)),
    (395, 322): ("green", (0.4, 0.5, 0.8, 0.9)),
}
"""By width and height: the colour of the one rectangle, and its box in fractions. Each picture is resized first."""


@pytest.mark.parametrize(("name", "other"), [("qwen2.5-vl", "qwen3-vl"), ("qwen3-vl", "qwen2.5-vl")])
def test_boxes_lie_on_the_drawn_rectangles_by_the_toys_own_contract_alone(name: str, other: str) -> None:
    model = qwen.as_served(name, TOYS / name)
    detect = model.skills["detect"]
    requests, prompts = [], []
    for size, (color, box) in PICTURES.items():
        drawn = Image.of(draw(Scene(0, size, "gray", (Shape("square", color, box),))))
        requests.append(DetectRequest(image=drawn, labels=[f"{color} rectangle"]))
        prompts += detect.ask(requests[-1])
    with engine(TOYS / name, False, model.family_args, chat=True, max_model_len=256) as running:
        replies = running.say(prompts, tokens=32)
        tokenizer = running.llm.get_tokenizer()
    for reply, request, ((width, height), (_, box)) in zip(replies, requests, PICTURES.items(), strict=True):
        text = tokenizer.decode(reply.reply).partition("<|im_end|>")[0]
        true = np.array([box]) * [width, height, width, height]
        result = detect.parse([Generation(text)], request)
        assert isinstance(result, DetectResult) and len(result.boxes) == 1, text
        assert iou(np.array([result.boxes[0].box]), true)[0, 0] > 0.5, (text, true)
        wrong = qwen_lessons.FORMATS[other].contract.parse(text, (width, height)).boxes
        assert all(iou(np.array([each.box]), true)[0, 0] < 0.5 for each in wrong), (text, true)
