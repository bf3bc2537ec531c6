"""Families of chat models: words of their own, control tokens around a label, and answers between tags."""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from serve.engines.base import Generation, Prompt
from serve.engines.chat_settings import ChatSettings
from serve.engines.checkpoint_facts import CheckpointFacts
from serve.engines.remote.chat_request import IMAGE_PART
from serve.engines.vllm.chat_renderer import PLACE, ChatRenderer
from serve.media.image import Image
from serve.models import MODELS
from serve.models.contracts import LFM2_VL, LFM2_VL_3B
from serve.models.reasoning import BRACKETS, Reasoning
from serve.tasks import TASKS
from serve.tasks.reply import Result

IMAGE = Image(np.zeros((480, 640, 3), np.uint8))


def ask(model: str, task: str, **fields: Any) -> list[Prompt]:
    return MODELS[model].skills[task].ask(TASKS[task].request(image=IMAGE, **fields))


def read(model: str, task: str, reply: str, **fields: Any) -> Result:
    request = TASKS[task].request(image=IMAGE, **fields)
    return MODELS[model].skills[task].parse([Generation(reply)], request)


def template_content(prompt: Prompt, *control_tokens: str) -> list[dict[str, Any]]:
    """Return the content of a prompt's last message as it goes to a chat template."""
    tokenizer = SimpleNamespace(all_special_tokens=list(control_tokens))
    params = SimpleNamespace(with_kwargs=lambda **_: None)
    renderer = SimpleNamespace(tokenizer=tokenizer, default_chat_tok_params=params, mm_processor=None)
    chat = ChatRenderer(renderer, ChatSettings(template="x"), CheckpointFacts())
    content: list[dict[str, Any]] = chat._messages(prompt.text)[-1]["content"]
    return content


@pytest.fixture(autouse=True)
def no_template(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ChatSettings, "read_template", lambda self: None)


def test_control_tokens_of_the_family_stay_and_those_of_a_label_do_not() -> None:
    (prompt,) = ask("internvl3.5-8b", "detect", labels=["a <box> of <ref>"])
    place, text = template_content(prompt, "<ref>", "</ref>", "<box>")
    assert place is PLACE
    assert text["text"].endswith("sentence describes: <ref>a < box> of < ref></ref>")


def test_texts_that_follow_each_other_are_one() -> None:
    (prompt,) = ask("internvl3.5-8b", "detect", labels=["cat"])
    assert [part["type"] for part in template_content(prompt)] == ["image_pil", "text"]


def test_edition_that_reasons_has_the_shapes_of_the_instructed_one_and_its_own_checkpoint() -> None:
    for size in ("3B", "8B", "14B"):
        plain, other = (MODELS[f"ministral-3-{size.lower()}{end}"] for end in ("", "-reasoning"))
        assert other.checkpoint.hub == f"mistralai/Ministral-3-{size}-Reasoning-2512"
        assert other.checkpoint.expect == plain.checkpoint.expect and other.card.parameters == plain.card.parameters
        assert plain.reasoning is None and other.reasoning == Reasoning((BRACKETS,), on=True)


def test_reply_between_tags_is_the_answer() -> None:
    boxed = "The dog sits left, so <|begin_of_box|>left<|end_of_box|>"
    assert read("glm-4.5v", "vqa", boxed, question="where?").as_text() == "left"
    assert read("glm-4.5v", "vqa", "<answer>left</answer>", question="where?").as_text() == "left"
    assert read("glm-4.5v", "count", "<|begin_of_box|>3<|end_of_box|>", question="dog").model_dump()["count"] == 3
    assert read("glm-4.5v", "caption", "A <|begin_of_box|>dog<|end_of_box|>.").as_text() == "A dog."
    (prompt,) = ask("glm-4.5v", "vqa", question="where?")
    assert prompt.sampling.special_tokens


def test_boxes_between_tags_are_in_thousandths() -> None:
    detected = read("glm-4.6v-flash", "detect", "<|begin_of_box|>[[100, 200, 300, 400]]<|end_of_box|>", labels=["cat"])
    assert detected.model_dump()["boxes"][0]["box"] == (64, 96, 192, 192)


def test_sizes_of_a_family_write_boxes_in_two_ways() -> None:
    assert MODELS["lfm2.5-vl-450m"].skills["detect"].contract is LFM2_VL
    assert MODELS["lfm2.5-vl-3b"].skills["detect"].contract is LFM2_VL_3B
    assert "0 to 1." in ask("lfm2.5-vl-450m", "detect", labels=["cat"])[0].text
    assert "0 to 1000." in ask("lfm2.5-vl-3b", "detect", labels=["cat"])[0].text


@pytest.mark.parametrize(
    ("model", "contents"),
    [
        ("lighton-ocr-2-1b", [[IMAGE_PART]]),
        ("glm-ocr", [[IMAGE_PART, {"type": "text", "text": "Text Recognition:"}]]),
        ("hunyuan-ocr", ["", [IMAGE_PART, {"type": "text", "text": "提取图中的文字。"}]]),
    ],
)
def test_reader_of_documents_gets_its_makers_words(model: str, contents: list[Any]) -> None:
    (prompt,) = ask(model, "ocr")
    assert [message["content"] for message in json.loads(prompt.text)] == contents
    assert prompt.sampling.max_tokens == 4096
    assert set(MODELS[model].skills) == {"ocr"}


def test_reader_of_documents_gives_text_without_markup() -> None:
    page = "# Bill\n<table><tr><td>Tea</td><td>**2**</td></tr></table>"
    assert read("paddleocr-vl", "ocr", page).as_text() == "Bill\nTea 2"
