"""A user's own model out of a few lines: its prompts, its card, and what is refused."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from distinct_models import distinct
from pydantic import ValidationError

from serve.errors import BadRequest
from serve.media.image import Image
from serve.models import MODELS, catalog
from serve.models.own import Lora, Own, lora, own
from serve.tasks import TASKS

PICTURE = Image(np.zeros((40, 60, 3), np.uint8))
GIVEN = {"name": "receipts", "like": "paligemma-3b-pt-448", "checkpoint": "me/receipts"}


def request(task: str, **fields: Any) -> Any:
    texts = {"question": "how many?", "labels": ["a cat", "a dog"]}
    return TASKS[task].request.model_validate({**TASKS[task].text_in(texts), **fields, "image": PICTURE})


def prompt_texts(model: Any, task: str, **fields: Any) -> list[str]:
    return [prompt.text for prompt in model.skills[task].ask(request(task, **fields))]


def build(**fields: Any) -> Any:
    return own(Own.model_validate({**GIVEN, **fields}))


def test_own_model_without_prompts_prompts_as_its_origin() -> None:
    model, like = build(), MODELS["paligemma-3b-pt-448"]
    assert model.skills == like.skills and model.prefix_lm and model.family_args == like.family_args
    assert (model.checkpoint.hub, model.checkpoint.gated, model.adapter, model.weight) == (
        "me/receipts",
        False,
        None,
        1,
    )


def test_checkpoint_must_have_the_architecture_and_image_size_of_its_origin() -> None:
    assert build().checkpoint.expect == {
        "architectures": ["PaliGemmaForConditionalGeneration"],
        "text_config.model_type": "gemma",
        "vision_config.image_size": 448,
    }


def test_own_prompts_replace_the_familys() -> None:
    prompts = {"vqa": "ask {lang}: {question}", "ocr": "read receipt {{all}}", "detect": "find {labels}!"}
    model = build(prompts=prompts, tasks=["detect", "ocr", "vqa"])
    assert list(model.skills) == ["vqa", "ocr", "detect"]
    assert prompt_texts(model, "vqa", lang="de") == ["ask de: how many?"]
    assert prompt_texts(model, "ocr") == ["read receipt {all}"]
    assert prompt_texts(model, "detect") == ["find a cat ; a dog!"]


def test_own_prompts_of_a_llava_stand_in_its_turn_with_a_prompt_a_phrase() -> None:
    prompts = {"vqa": "{question} Briefly.", "detect": "Where is {label}?", "caption": "Beschreibe das Bild ({lang})."}
    model = build(like="llava-1.5-7b", prompts=prompts)
    assert prompt_texts(model, "vqa") == ["USER: <image>\nhow many? Briefly. ASSISTANT:"]
    assert prompt_texts(model, "detect") == [f"USER: <image>\nWhere is {it}? ASSISTANT:" for it in ("a cat", "a dog")]
    assert prompt_texts(model, "caption", lang="de") == ["USER: <image>\nBeschreibe das Bild (de). ASSISTANT:"]
    with pytest.raises(BadRequest, match="English"):
        prompt_texts(build(like="llava-1.5-7b"), "caption", lang="de")


def test_braces_in_a_question_are_no_placeholders() -> None:
    model = build(prompts={"vqa": "answer {question}"})
    assert prompt_texts(model, "vqa", question="{lang} {0} {{x}}") == ["answer {lang} {0} {{x}}"]


@pytest.mark.parametrize("name", [model.name for model in distinct() if model.images and "vqa" in model.skills])
def test_prompt_of_the_question_alone_makes_the_turn_of_every_family(name: str) -> None:
    model = build(like=name, prompts={"vqa": "{question}"})
    (prompt,) = model.skills["vqa"].ask(request("vqa"))
    (usual,) = MODELS[name].skills["vqa"].ask(request("vqa"))
    before, after = usual.text.split("how many?") if "<image>" in usual.text else ("", "")
    assert prompt.text.startswith(before) and "how many?" in prompt.text
    assert dataclasses.replace(prompt, text="") == dataclasses.replace(usual, text="")
    if after:
        assert prompt.text.endswith(after.split("phrase.")[-1])


def test_max_tokens_holds_unless_the_request_gives_its_own() -> None:
    model = build(max_tokens=300)
    assert [p.sampling.max_tokens for p in model.skills["vqa"].ask(request("vqa"))] == [300]
    assert [p.sampling.max_tokens for p in model.skills["vqa"].ask(request("vqa", max_tokens=5))] == [5]


def test_card_of_an_own_model_has_no_blank_cell_and_names_its_origin() -> None:
    model = build(tasks=["ocr"], weight=2, card={"licence": "internal", "parameters": 7})
    assert (model.card.licence, model.card.parameters, model.weight) == ("internal", 7, 2)
    assert model.card.tasks == ("ocr",) and model.card.category == "Fine-tune of paligemma-3b-pt-448"
    table = catalog.compare_models(["receipts", "llava-1.5-7b"], {"receipts": model})
    assert all(value not in ("", [], None) for row in table.rows for value in row.values)


def test_adapter_is_its_base_with_another_name_and_other_prompts() -> None:
    base = build()
    spec = {"name": "mine", "base": "receipts", "adapter": "/lora", "prompts": {"ocr": "read it"}, "weight": 0.5}
    model = lora(Lora.model_validate(spec), base)
    assert (model.adapter, model.checkpoint.hub, model.weight) == ("mine", "/lora", 0.5)
    assert model.card.category == "LoRA adapter on receipts" and prompt_texts(model, "ocr") == ["read it"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"like": "gpt"}, "There is no model 'gpt' to be like. Known: .*llava-1.5-7b"),
        ({"name": "llava-1.5-7b"}, "'llava-1.5-7b' is a known model"),
        ({"name": "vqa"}, "'vqa' means something else here"),
        ({"name": "a b"}, "String should match pattern"),
        ({"tasks": ["chat"]}, "tasks: paligemma-3b-pt-448 cannot do chat, only vqa"),
        ({"tasks": ["ocr"], "prompts": {"vqa": "{question}"}}, "prompts: receipts does not do vqa"),
        ({"prompts": {"vqa": "answer {quesion}"}}, r"prompts: vqa: {quesion} is no placeholder; .*{question}, {lang}"),
        ({"prompts": {"vqa": "answer en"}}, r"prompts: vqa: {question} is missing"),
        ({"prompts": {"vqa": "{question.__class__}"}}, r"{question.__class__} is no placeholder"),
        ({"prompts": {"vqa": "{question!r:9}"}}, r"{question!r:9} is no placeholder"),
        ({"prompts": {"vqa": "{question} {"}}, "a brace stands alone"),
        ({"prompts": {"detect": "detect {label}"}}, r"{label} is no placeholder; it can hold {labels}"),
        ({"prompts": {"ocr": "read {question}"}}, r"{question} is no placeholder; it can hold none"),
        ({"prompts": {"guess": "x"}}, "prompts.guess"),
        ({"card": {"tasks": ["x"]}}, "card.tasks"),
        ({"weight": -1}, "weight"),
        ({"checkpoint": ""}, "checkpoint"),
        ({"promts": {}}, "promts"),
    ],
)
def test_wrong_setting_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Own.model_validate({**GIVEN, **fields})
