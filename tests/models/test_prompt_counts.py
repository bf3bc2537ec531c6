"""`Skill.prompts`, by which the gateway counts a request's prompts, against the prompts that `ask` makes."""

from collections.abc import AsyncGenerator, Callable, Hashable
from typing import Any

import numpy as np
import pytest
from distinct_models import distinct

from deployments.routing.pool import RoutingKey
from deployments.routing.replica_route import ReplicaRoute
from serve.media.image import Image
from serve.models.base import Model
from serve.models.catalog import MODELS
from serve.tasks.caption import CaptionRequest
from serve.tasks.chat import ChatRequest
from serve.tasks.detect import DetectRequest
from serve.tasks.ocr import OcrRequest
from serve.tasks.segment import SegmentRequest
from serve.tasks.vqa import VqaRequest

PICTURE = Image(np.zeros((20, 30, 3), np.uint8), "ab" * 20)
DETECTING = [model for model in distinct() if "detect" in model.skills]


def detecting(count: int) -> DetectRequest:
    return DetectRequest(image=PICTURE, labels=[f"thing {number}" for number in range(count)])


@pytest.mark.parametrize("model", DETECTING, ids=lambda model: model.name)
def test_detection_count_equals_the_prompts_of_ask(model: Model) -> None:
    skill = model.skills["detect"]
    for count in (1, 2, 32):
        assert skill.prompts(detecting(count)) == len(skill.ask(detecting(count)))


def test_detection_takes_a_prompt_per_phrase_or_a_single_prompt() -> None:
    assert {model.skills["detect"].prompts(detecting(5)) for model in DETECTING} == {1, 5}


@pytest.mark.parametrize("task", ["vqa", "chat", "ocr", "caption", "segment"])
def test_other_tasks_take_a_single_prompt(task: str) -> None:
    requests = {
        "vqa": VqaRequest(image=PICTURE, question="a?"),
        "chat": ChatRequest(image=PICTURE, question="a"),
        "ocr": OcrRequest(image=PICTURE),
        "caption": CaptionRequest(image=PICTURE),
        "segment": SegmentRequest(image=PICTURE, labels=["a", "b"]),
    }
    models = [model for model in MODELS.values() if task in model.skills]
    assert models and {model.skills[task].prompts(requests[task]) for model in models} == {1}


async def test_replica_route_counts_the_prompts_of_a_request() -> None:
    keys: list[RoutingKey] = []

    class Recording(ReplicaRoute):
        async def stream(
            self, identify: Callable[[], tuple[RoutingKey, Hashable]], *_: Any
        ) -> AsyncGenerator[str, None]:
            key, _request = identify()
            keys.append(key)
            yield "a"

    unused: Any = None
    for model in DETECTING:
        async for _ in Recording(model, unused, unused).answer("detect", detecting(7)):
            pass
    assert {key.prompts for key in keys} == {1, 7}
