import numpy as np
import pytest

from serve.engines.base import Spoken
from serve.media.image import Image
from serve.models import MODELS
from serve.models.base import Turn
from serve.models.llava_next import VICUNA_SYSTEM
from serve.tasks.detect import DetectRequest
from serve.tasks.ocr import OcrRequest
from serve.tasks.vqa import VqaRequest

WIDE = Image(np.zeros((50, 100, 3), np.uint8))
TALK = [
    Turn("user", "What is it?", pictured=True),
    Turn("assistant", "A cat."),
    Turn("user", "Sure?"),
]
NAMES = ["llava-v1.6-mistral-7b", "llava-v1.6-vicuna-7b", "llava-v1.6-vicuna-13b", "llava-v1.6-34b"]


def test_the_four_are_there() -> None:
    assert [name for name in MODELS if name.startswith("llava-v1.6")] == NAMES


@pytest.mark.parametrize(
    "name, said",
    [
        ("llava-v1.6-mistral-7b", "[INST] <image>\nWhat is it? [/INST] A cat. </s>[INST] Sure? [/INST]"),
        (
            "llava-v1.6-vicuna-7b",
            f"{VICUNA_SYSTEM} USER: <image>\nWhat is it? ASSISTANT: A cat.</s>USER: Sure? ASSISTANT:",
        ),
        (
            "llava-v1.6-34b",
            "<|im_start|>system\nAnswer the questions.<|im_end|><|im_start|>user\n<image>\nWhat is it?<|im_end|>"
            "<|im_start|>assistant\nA cat.<|im_end|><|im_start|>user\nSure?<|im_end|><|im_start|>assistant\n",
        ),
    ],
)
def test_each_language_model_has_its_own_turns(name: str, said: str) -> None:
    assert MODELS[name].converse(TALK) == said


@pytest.mark.parametrize(
    "name, said",
    [
        ("llava-v1.6-mistral-7b", "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n<image>\nWhy? [/INST]"),
        ("llava-v1.6-vicuna-13b", "Be brief. USER: <image>\nWhy? ASSISTANT:"),
        (
            "llava-v1.6-34b",
            "<|im_start|>system\nBe brief.<|im_end|><|im_start|>user\n<image>\nWhy?<|im_end|><|im_start|>assistant\n",
        ),
    ],
)
def test_a_system_message_takes_the_place_of_the_published_one(name: str, said: str) -> None:
    assert MODELS[name].converse([Turn("system", "Be brief."), Turn("user", "Why?", pictured=True)]) == said


def test_tasks_are_asked_in_the_familys_turns() -> None:
    (vqa,) = MODELS["llava-v1.6-34b"].skills["vqa"].ask(VqaRequest(image=WIDE, question="What is it?"))
    assert vqa.text.endswith(
        "<image>\nWhat is it?\nAnswer the question using a single word or phrase.<|im_end|><|im_start|>assistant\n"
    )
    assert vqa.sampling.stop == ("<|im_end|>",)
    (ocr,) = MODELS["llava-v1.6-mistral-7b"].skills["ocr"].ask(OcrRequest(image=WIDE))
    assert ocr.text == "[INST] <image>\nWhat is written in the image? Answer with the text only. [/INST]"


def test_only_detection_pads_the_picture() -> None:
    """The tiles are the processor's business; a box is a fraction of the padded square, whatever the tiles."""
    model = MODELS["llava-v1.6-vicuna-7b"]
    (vqa,) = model.skills["vqa"].ask(VqaRequest(image=WIDE, question="What is it?"))
    assert vqa.image is WIDE and model.prepare(WIDE) is WIDE
    asked = DetectRequest(image=WIDE, labels=["cat"])
    (prompt,) = model.skills["detect"].ask(asked)
    assert prompt.image is not None and (prompt.image.width, prompt.image.height) == (100, 100)
    (found,) = model.skills["detect"].parse([Spoken("[0.10, 0.25, 0.50, 0.75]")], asked).boxes
    assert found.box == (10, 0, 50, 50)
