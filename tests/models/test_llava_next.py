import numpy as np
import pytest

from serve.engines.base import Generation
from serve.media.image import Image
from serve.models import MODELS
from serve.models.base import Turn
from serve.models.llava_next_prompts import VICUNA_SYSTEM
from serve.tasks.detect import DetectRequest
from serve.tasks.ocr import OcrRequest
from serve.tasks.vqa import VqaRequest

WIDE = Image(np.zeros((50, 100, 3), np.uint8))
CONVERSATION = [
    Turn("user", "What is it?", has_image=True),
    Turn("assistant", "A cat."),
    Turn("user", "Sure?"),
]
NAMES = ["llava-v1.6-mistral-7b", "llava-v1.6-vicuna-7b", "llava-v1.6-vicuna-13b", "llava-v1.6-34b"]


def test_catalogue_has_the_four_checkpoints() -> None:
    assert [name for name in MODELS if name.startswith("llava-v1.6")] == NAMES


@pytest.mark.parametrize(
    "name, prompt",
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
def test_conversation_prompt_follows_the_language_model(name: str, prompt: str) -> None:
    assert MODELS[name].converse(CONVERSATION) == prompt


@pytest.mark.parametrize(
    "name, prompt",
    [
        ("llava-v1.6-mistral-7b", "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n<image>\nWhy? [/INST]"),
        ("llava-v1.6-vicuna-13b", "Be brief. USER: <image>\nWhy? ASSISTANT:"),
        (
            "llava-v1.6-34b",
            "<|im_start|>system\nBe brief.<|im_end|><|im_start|>user\n<image>\nWhy?<|im_end|><|im_start|>assistant\n",
        ),
    ],
)
def test_system_message_replaces_the_published_system_text(name: str, prompt: str) -> None:
    assert MODELS[name].converse([Turn("system", "Be brief."), Turn("user", "Why?", has_image=True)]) == prompt


def test_task_prompts_use_the_chat_template() -> None:
    (vqa,) = MODELS["llava-v1.6-34b"].skills["vqa"].ask(VqaRequest(image=WIDE, question="What is it?"))
    assert vqa.text.endswith(
        "<image>\nWhat is it?\nAnswer the question using a single word or phrase.<|im_end|><|im_start|>assistant\n"
    )
    assert vqa.sampling.stop == ("<|im_end|>",)
    (ocr,) = MODELS["llava-v1.6-mistral-7b"].skills["ocr"].ask(OcrRequest(image=WIDE))
    assert ocr.text == "[INST] <image>\nWhat is written in the image? Answer with the text only. [/INST]"


def test_only_detection_pads_the_image() -> None:
    """Boxes are fractions of the padded square, whatever tiles the processor cuts."""
    model = MODELS["llava-v1.6-vicuna-7b"]
    (vqa,) = model.skills["vqa"].ask(VqaRequest(image=WIDE, question="What is it?"))
    assert vqa.image is WIDE and model.prepare(WIDE) is WIDE
    request = DetectRequest(image=WIDE, labels=["cat"])
    (prompt,) = model.skills["detect"].ask(request)
    assert prompt.image is not None and (prompt.image.width, prompt.image.height) == (100, 100)
    (item,) = model.skills["detect"].parse([Generation("[0.10, 0.25, 0.50, 0.75]")], request).boxes
    assert item.box == (10, 0, 50, 50)
