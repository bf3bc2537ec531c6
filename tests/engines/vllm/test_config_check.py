"""A checkpoint's config.json against its card, with files of a few lines."""

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from serve.engines import hub
from serve.engines.vllm import config_check
from serve.errors import ModelError
from serve.models import MODELS

MIX = MODELS["paligemma-3b-mix-448"].checkpoint.expect
TOY = Path(hub.__file__).parents[1] / "toy"


def written(folder: Path, **changed: Any) -> Path:
    """A config.json as published for paligemma-3b-mix-448, with dotted fields changed (`__` for a dot)."""
    config: dict[str, Any] = {
        "architectures": ["PaliGemmaForConditionalGeneration"],
        "model_type": "paligemma",
        "text_config": {"model_type": "gemma", "vocab_size": 257_216, "max_position_embeddings": 8192},
        "vision_config": {"model_type": "siglip_vision_model", "image_size": 448},
    }
    for field, value in changed.items():
        *path, last = field.split("__")
        place = config
        for name in path:
            place = place[name]
        place[last] = value
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def refusal(folder: Path, expect: dict[str, Any] | Any = MIX) -> str:
    with pytest.raises(ModelError) as refused:
        config_check.check_config(folder, expect)
    assert refused.value.code == "config_mismatch"
    return refused.value.message


def test_matching_config_passes(tmp_path: Path) -> None:
    config_check.check_config(written(tmp_path), MIX)
    config_check.check_config(written(tmp_path), {})


@pytest.mark.parametrize(
    "field, value, says",
    [
        ("text_config__vocab_size", 32_064, "text_config.vocab_size should be 257216 and is 32064"),
        (
            "text_config__max_position_embeddings",
            4096,
            "text_config.max_position_embeddings should be 8192 and is 4096",
        ),
        ("vision_config__image_size", 224, "vision_config.image_size should be 448 and is 224"),
        ("text_config__model_type", "gemma2", "text_config.model_type should be gemma and is gemma2"),
    ],
)
def test_difference_is_named_with_expected_and_actual_value(
    tmp_path: Path, field: str, value: object, says: str
) -> None:
    message = refusal(written(tmp_path, **{field: value}))
    assert says in message and str(tmp_path / "config.json") in message


def test_other_architecture_is_the_only_difference_named(tmp_path: Path) -> None:
    message = refusal(written(tmp_path, architectures=["LlavaForConditionalGeneration"], text_config={}))
    assert "architectures should be PaliGemmaForConditionalGeneration and is LlavaForConditionalGeneration" in message
    assert "vocab_size" not in message
    assert "architectures should be PaliGemmaForConditionalGeneration and is missing" in refusal(
        written(tmp_path, architectures=None)
    )


def test_two_differences_are_both_named(tmp_path: Path) -> None:
    message = refusal(written(tmp_path, text_config__vocab_size=1, vision_config__image_size=2))
    assert "vocab_size should be 257216 and is 1; vision_config.image_size should be 448 and is 2" in message


def test_missing_field_has_transformers_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled = {"text_config": {"max_position_embeddings": 8192}, "vision_config": {"image_size": 224}}
    config = types.SimpleNamespace(to_dict=lambda: filled)
    auto = types.SimpleNamespace(from_pretrained=lambda folder: config)
    monkeypatch.setitem(sys.modules, "transformers", types.SimpleNamespace(AutoConfig=auto))  # type: ignore[arg-type]
    text = {"model_type": "gemma", "vocab_size": 257_216}
    config_check.check_config(written(tmp_path, text_config=text), MIX)
    message = refusal(written(tmp_path, text_config=text, vision_config={}))
    assert message.endswith("vision_config.image_size should be 448 and is 224.")


@pytest.mark.engine
def test_the_defaults_are_those_of_transformers_itself(tmp_path: Path) -> None:
    """Published google/paligemma-3b-mix-224 states neither the context nor the image size."""
    text = {"model_type": "gemma", "vocab_size": 257_216}
    folder = written(tmp_path, text_config=text, vision_config={"model_type": "siglip_vision_model"})
    config_check.check_config(folder, MODELS["paligemma-3b-mix-224"].checkpoint.expect)
    assert "vision_config.image_size should be 448 and is 224" in refusal(folder)


def test_a_users_own_checkpoint_may_have_another_context_and_vocabulary(tmp_path: Path) -> None:
    own = written(tmp_path, text_config__vocab_size=300_000, text_config__max_position_embeddings=512)
    config_check.check_config(own, config_check.kind(MIX))
    assert "model_type" in refusal(written(tmp_path, text_config__model_type="gemma2"), config_check.kind(MIX))


def test_the_toys_are_not_the_published_ones() -> None:
    assert "text_config.vocab_size should be 257216 and is 4096" in refusal(TOY / "paligemma")
    assert "LlavaForConditionalGeneration" in refusal(TOY / "llava")


def test_every_card_expects_an_architecture_and_fields_of_its_size() -> None:
    """A chat model, whose engine looks at its files anyway, expects what is known of it for certain."""
    for name, model in MODELS.items():
        if model.engine == "vllm" and not model.card.toy:
            expect, context = model.checkpoint.expect, model.card.context_window
            assert expect.get("text_config.max_position_embeddings", context) == context, name
            if model.chat is None:
                assert len(expect["architectures"]) == 1 and {"vision_config.image_size"} < set(expect), name
            else:
                assert len(expect.get("architectures", [name])) == 1, name


def test_sizes_of_a_qwen_family_expect_different_fields() -> None:
    qwen = {name: model.checkpoint.expect for name, model in MODELS.items() if name.startswith(("qwen2.5", "qwen3-vl"))}
    editions = {name: expect for name, expect in qwen.items() if not name.endswith("-thinking")}
    assert len(editions) == 10 and len({str(sorted(expect.items())) for expect in editions.values()}) == 10
