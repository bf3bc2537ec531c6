"""Faults of adapters are reported before an engine starts, from the headers of their files."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from serve.engines import adapters
from serve.engines.adapters import Adapter, fit
from serve.errors import ModelError

Q, K = "language_model.model.layers.0.self_attn.q_proj", "language_model.model.layers.0.self_attn.k_proj"
EYE = "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj"
HEAD = "language_model.lm_head"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Write a checkpoint with three layers that a LoRA may change, and one that it may not."""
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["PaliGemmaForConditionalGeneration"]}))
    shapes = {Q: (8, 16), K: (4, 16), EYE: (6, 6), HEAD: (32, 16)}
    save_file(
        {f"{name}.weight": np.zeros(shape, np.float32) for name, shape in shapes.items()}, folder / "m.safetensors"
    )
    return folder


def adapter(folder: Path, shapes: dict[str, tuple[int, int]], rank: int = 4, **config: object) -> Adapter:
    """A LoRA for layers of those shapes [out, in]."""
    tensors = {}
    for name, (out, width) in shapes.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = np.zeros((rank, width), np.float32)
        tensors[f"base_model.model.{name}.lora_B.weight"] = np.zeros((out, rank), np.float32)
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / adapters.WEIGHTS)
    plain = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "bias": "none", "modules_to_save": None}
    (folder / adapters.CONFIG).write_text(json.dumps({**plain, **config}))
    return Adapter("mine", str(folder))


@pytest.mark.parametrize(
    ("names", "tower", "newer"),
    [
        ([Q, K], False, False),
        (["model.language_model.layers.0.self_attn.q_proj"], False, False),
        ([Q, EYE], True, False),
        (["model.vision_tower.encoder.layers.0.self_attn.q_proj"], True, True),
    ],
    ids=["as the hub", "as transformers 5", "vision tower", "vision tower as transformers 5"],
)
def test_module_names_of_both_releases_match_the_base(
    base: Path, tmp_path: Path, names: list[str], tower: bool, newer: bool
) -> None:
    shapes = {name: (6, 6) if "vision" in name else (4, 16) if "k_proj" in name else (8, 16) for name in names}
    fitted = fit(adapter(tmp_path / "a", shapes), base)
    assert (fitted.rank, fitted.tower, fitted.newer) == (4, tower, newer)
    assert adapters.lora_arguments([fitted, fitted], cpu=False) == {
        "enable_lora": True,
        "max_loras": 2,
        "max_cpu_loras": 2,
        "max_lora_rank": 8,
        **({"enable_tower_connector_lora": True} if tower else {}),
    }


def test_engine_without_adapters_has_no_lora_arguments() -> None:
    assert adapters.lora_arguments([], cpu=True) == {}


def test_engine_holds_slots_for_adapters_that_may_come(tmp_path: Path) -> None:
    fitted = adapters.CheckedAdapter("mine", tmp_path, 16, False, False)
    alone = adapters.lora_arguments([], cpu=True, further=2, further_rank=8)
    both = adapters.lora_arguments([fitted], cpu=False, further=2, further_rank=8)
    assert [(chosen["max_loras"], chosen["max_lora_rank"]) for chosen in (alone, both)] == [(3, 8), (3, 16)]


def test_a_slot_stays_empty_on_a_cpu(tmp_path: Path) -> None:
    chosen = adapters.lora_arguments([adapters.CheckedAdapter("mine", tmp_path, 16, False, False)], cpu=True)
    assert (chosen["max_loras"], chosen["max_cpu_loras"], chosen["max_lora_rank"]) == (2, 2, 16)


def _cut(folder: Path) -> None:
    file = folder / adapters.WEIGHTS
    file.write_bytes(file.read_bytes()[:-8])


def _only_a(folder: Path) -> None:
    tensors = load_file(folder / adapters.WEIGHTS)
    save_file({name: tensor for name, tensor in tensors.items() if "lora_A" in name}, folder / adapters.WEIGHTS)


def _pickled(folder: Path) -> None:
    (folder / adapters.WEIGHTS).rename(folder / "adapter_model.bin")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / adapters.CONFIG).unlink(), "has no adapter_config.json"),
        (lambda folder: (folder / adapters.WEIGHTS).unlink(), "has no adapter_model.safetensors"),
        (_pickled, "adapter_model.bin may run code"),
        (_cut, "cut short or damaged"),
        (lambda folder: (folder / adapters.CONFIG).write_text("{}"), "needs r and lora_alpha"),
        (lambda folder: (folder / adapters.CONFIG).write_text('{"r": 0, "lora_alpha": 1}'), "whole number r"),
        (_only_a, "only A of A and B"),
        (lambda folder: save_file({}, folder / adapters.WEIGHTS), "holds no tensors"),
        (lambda folder: save_file({"x.weight": np.zeros(1)}, folder / adapters.WEIGHTS), "tensor x.weight is not one"),
    ],
)
def test_broken_adapter_is_refused_with_its_fault(
    base: Path, tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    this = adapter(tmp_path / "a", {Q: (8, 16)})
    spoil(tmp_path / "a")
    with pytest.raises(ModelError, match=f"The adapter mine cannot be used: .*{message}"):
        fit(this, base)


@pytest.mark.parametrize(
    ("shapes", "config", "message"),
    [
        ({Q: (8, 24)}, {}, f"{Q} is made for a layer of 24 to 8, and its base's is of 16 to 8"),
        ({Q: (8, 16)}, {"r": 5}, "do not fit r = 5"),
        ({Q.replace("layers.0", "layers.9"): (8, 16)}, {}, "its base has no layer .*layers.9"),
        ({HEAD: (32, 16)}, {}, "it changes language_model.lm_head, and vLLM takes q_proj"),
        ({Q: (8, 16)}, {"use_dora": True}, "use_dora is True, and only plain LoRA is served"),
        ({Q: (8, 16)}, {"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\]"),
        ({Q: (8, 16)}, {"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({Q: (8, 16)}, {"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
    ],
)
def test_an_adapter_that_its_base_cannot_take_is_refused(
    base: Path, tmp_path: Path, shapes: dict[str, tuple[int, int]], config: dict[str, object], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        fit(adapter(tmp_path / "a", shapes, **config), base)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_bdlora", {"target_modules_bd_a": ["q_proj"], "nblocks": 2}),
        ("trainable_token_indices", [5, 7]),
        ("target_parameters", ["mlp.gate_proj.weight"]),
        ("arrow_config", {"top_k": 3}),
        ("ensure_weight_tying", True),
        ("layer_replication", [[0, 2], [1, 3]]),
        ("alora_invocation_tokens", [11, 12]),
        ("lora_bias", True),
        ("fan_in_fan_out", True),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", "loftq"),
        ("what_a_later_peft_adds", "yes"),
    ],
)
def test_fields_beyond_plain_lora_are_refused_by_name(base: Path, tmp_path: Path, field: str, value: object) -> None:
    with pytest.raises(ModelError, match=f"The adapter mine cannot be used: {field} is .* only plain LoRA") as caught:
        fit(adapter(tmp_path / "a", {Q: (8, 16)}, **{field: value}), base)
    assert caught.value.code == "adapter_refused"


def test_fields_of_a_plain_lora_are_accepted(base: Path, tmp_path: Path) -> None:
    """PEFT 0.19's fields have their defaults, and those about training other values."""
    config: dict[str, object] = {
        **dict.fromkeys(("use_dora", "use_qalora", "lora_bias", "fan_in_fan_out", "ensure_weight_tying"), False),
        **dict.fromkeys(("layer_replication", "alora_invocation_tokens", "arrow_config", "use_bdlora"), None),
        **dict.fromkeys(("target_parameters", "trainable_token_indices", "megatron_config", "exclude_modules"), None),
        **dict.fromkeys(("loftq_config", "rank_pattern", "alpha_pattern"), {}),
        "target_modules": "all-linear",
        "use_rslora": True,
        "lora_dropout": 0.05,
        "layers_to_transform": [0],
        "qalora_group_size": 16,
        "megatron_core": "megatron.core",
        "auto_mapping": {"base_model_class": "PaliGemmaForConditionalGeneration"},
        "base_model_name_or_path": "somebody/base",
        "peft_version": "0.19.0",
        "inference_mode": True,
        "init_lora_weights": "gaussian",
    }
    assert fit(adapter(tmp_path / "a", {Q: (8, 16)}, **config), base).rank == 4


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj",
        "layers.0.self_attn.q_proj",
        "language_model.layers.0.self_attn.q_proj",
        "model.model.language_model.layers.0.self_attn.q_proj",
        "base_model.model.language_model.model.layers.0.self_attn.q_proj",
        "_orig_mod.language_model.model.layers.0.self_attn.q_proj",
        "model.visual.blocks.0.attn.qkv",
    ],
)
def test_unknown_layers_are_refused_by_name(base: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match=f"The adapter mine cannot be used: its base has no layer {name}"):
        fit(adapter(tmp_path / "a", {name: (8, 16)}), base)


def test_a_layer_that_is_changed_under_two_names_is_refused(base: Path, tmp_path: Path) -> None:
    names = {Q: (8, 16), "model.language_model.layers.0.self_attn.q_proj": (8, 16)}
    with pytest.raises(ModelError, match="twice, under two names"):
        fit(adapter(tmp_path / "a", names), base)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"r": 16, "rank_pattern": {"q_proj": 4}}, None),
        ({"r": 16, "rank_pattern": {r"layers\.0\.self_attn\.q_proj": 4}, "alpha_pattern": {"q_proj": 2.5}}, None),
        ({"r": 4, "rank_pattern": {"k_proj": 16}}, None),
        ({"r": 16, "rank_pattern": {"k_proj": 4}}, "do not fit r = 16"),
        ({"r": 16, "rank_pattern": {"_proj": 4}}, "do not fit r = 16"),  # PEFT's keys begin where a name does
        ({"r": 4, "rank_pattern": {"q_proj": 8}}, "do not fit r = 8"),
        ({"rank_pattern": {"q_proj": "four"}}, "rank_pattern is not made of modules' names and whole numbers"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern is not made of"),
        ({"alpha_pattern": {"q_proj": None}}, "alpha_pattern is not made of modules' names and numbers"),
        ({"alpha_pattern": {"(": 2}}, "alpha_pattern is not made of"),
        ({"r": True}, "needs a whole number r"),
    ],
)
def test_ranks_by_module_are_checked_against_the_matrices(
    base: Path, tmp_path: Path, config: dict[str, object], message: str | None
) -> None:
    this = adapter(tmp_path / "a", {Q: (8, 16)}, **config)
    if message is None:  # vLLM makes room for the largest rank that the file names
        assert fit(this, base).rank == max(config["r"], *config["rank_pattern"].values())  # type: ignore[call-overload]
    else:
        with pytest.raises(ModelError, match=message):
            fit(this, base)


def test_a_rank_beyond_the_engines_most_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="rank 600 is larger than 512"):
        fit(adapter(tmp_path / "a", {Q: (8, 16)}, rank=600), base)


@pytest.mark.parametrize(
    ("architecture", "layer", "message"),
    [
        ("LlavaForConditionalGeneration", EYE, "changes the vision tower .*LlavaForConditionalGeneration: train it"),
        ("LlavaOnevisionForConditionalGeneration", Q, "no LoRA for its base's architecture, LlavaOnevision"),
    ],
)
def test_adapter_that_vllm_cannot_load_for_a_family_is_refused(
    base: Path, tmp_path: Path, architecture: str, layer: str, message: str
) -> None:
    (base / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    with pytest.raises(ModelError, match=message):
        fit(adapter(tmp_path / "a", {layer: (6, 6) if layer == EYE else (8, 16)}), base)


def test_a_missing_folder_is_named(base: Path) -> None:
    with pytest.raises(ModelError, match="The adapter mine cannot be used: There is no folder /nowhere") as caught:
        fit(Adapter("mine", "/nowhere"), base)
    assert caught.value.code == "checkpoint_missing"
