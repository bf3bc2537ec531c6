"""LoRA adapters (arXiv 2106.09685) in PEFT's format, held against the checkpoint that they change.

Everything that can be wrong with an adapter is found here, in file headers, before an engine is started: vLLM would
find some of it only when the adapter is first used, and would leave out silently what it has no place for. What it
can hold was tried with vLLM 0.32 (tests/engines/test_adapters.py, NOTES.md).
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve.engines import hub, module_names
from serve.errors import ModelError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes for max_lora_rank
PREFIX = "base_model.model."  # PEFT's, before the name of a module

ARCHITECTURES = (
    "LlavaForConditionalGeneration",
    "LlavaNextForConditionalGeneration",
    "LlavaNextVideoForConditionalGeneration",
    "PaliGemmaForConditionalGeneration",
)
"""Whose language model takes adapters in vLLM 0.32. LLaVA-OneVision's does not."""

TOWERS = ("PaliGemmaForConditionalGeneration",)
"""Whose vision tower takes them too. For CLIP's vLLM 0.32 forgets the class token and dies at the first picture."""

DECODER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TOWER = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")

# Fields of adapter_config.json that ask for more than W + alpha / r * B A, and the values that do not.
PLAIN: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
}

HARMLESS = frozenset(
    (
        # The rank and the scale, which are checked against the matrices or which vLLM applies.
        *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora"),
        # Which layers were trained: the matrices' names are checked.
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
        # How it was trained and saved.
        *("lora_dropout", "inference_mode", "task_type", "auto_mapping", "base_model_name_or_path", "revision"),
        *("peft_version", "runtime_config", "ephemeral_gpu_offload", "megatron_config", "megatron_core"),
        # Settings of a way to begin or of a variant, which another field switches on.
        *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size"),
    )
)
"""Fields of adapter_config.json that may hold anything. Any other field must be empty or false: what a later PEFT adds
changes what the matrices mean more often than not (block-diagonal LoRA, trained tokens), and vLLM would ignore it."""


@dataclass(frozen=True)
class Adapter:
    """A LoRA by the name of its model. checkpoint: a folder or a hub id, with `revision`."""

    name: str
    checkpoint: str
    revision: str | None = None


@dataclass(frozen=True)
class Fitted:
    """An adapter that belongs to its base. rank: the largest of its matrices; tower: whether it changes the vision
    tower too; newer: whether it names modules as newer releases of transformers do (module_names.py)."""

    name: str
    folder: Path
    rank: int
    tower: bool
    newer: bool


def fit(
    adapter: Adapter,
    base: Path,
    *,
    progress: Callable[[str], None] = lambda words: None,
) -> Fitted:
    """Find an adapter and hold it against the checkpoint in `base`. Raises ModelError that names it."""
    try:
        folder = hub.locate(adapter.checkpoint, adapter.revision, progress=progress, check=whole)
        return _fit(adapter.name, folder, base)
    except ModelError as error:
        raise ModelError(f"The adapter {adapter.name} cannot be used: {error.message}", code=error.code) from error


def arguments(fitted: Sequence[Fitted], *, cpu: bool) -> dict[str, Any]:
    """vLLM engine arguments for these adapters: none where there are none.

    One slot stays empty on a CPU: for a prompt without an adapter vLLM 0.32 looks up slot -1 there, which is the last
    one, and with that slot taken the base speaks as the adapter in it (measured: every reply).
    """
    if not fitted:
        return {}
    slots, rank = len(fitted) + cpu, max(adapter.rank for adapter in fitted)
    towers = {"enable_tower_connector_lora": True} if any(adapter.tower for adapter in fitted) else {}
    return {
        "enable_lora": True,
        "max_loras": slots,
        "max_cpu_loras": slots,
        "max_lora_rank": next(size for size in RANKS if size >= rank),
        **towers,
    }


def whole(folder: Path) -> None:
    if not (folder / CONFIG).is_file():
        raise _broken(f"{folder} has no {CONFIG}.")
    if not (folder / WEIGHTS).is_file():
        unsafe = (folder / "adapter_model.bin").is_file()
        advice = " (its adapter_model.bin may run code when it is read: save it as safetensors)" if unsafe else ""
        raise _broken(f"{folder} has no {WEIGHTS}{advice}.")
    hub.intact(folder / WEIGHTS)


def _fit(name: str, folder: Path, base: Path) -> Fitted:
    architecture = (json.loads((base / "config.json").read_text()).get("architectures") or ["unknown"])[0]
    if architecture not in ARCHITECTURES:
        raise _refused(f"vLLM has no LoRA for its base's architecture, {architecture}.")
    config = _config(folder)
    ranks = [config["r"], *config["rank_pattern"].values()]
    shapes = {module_names.older(tensor.removesuffix(".weight")): shape for tensor, shape in _shapes(base).items()}
    matrices = _matrices(folder)
    tower, places = False, set()
    for target, (a, b) in matrices.items():
        place = module_names.older(target)
        if place in places:
            raise _broken(f"it changes {target} twice, under two names.")
        places.add(place)
        tower |= _check_place(place, target, architecture, shapes)
        out, width = shapes[place]
        if a[1:] != (width,) or b[:1] != (out,):
            raise _refused(
                f"its {target} is made for a layer of {'?' if len(a) < 2 else a[1]} to {b[0]}, "
                f"and its base's is of {width} to {out}."
            )
        rank = _rank(target, config)
        if len(a) != 2 or len(b) != 2 or a[0] != b[1] or a[0] != rank:
            raise _broken(f"its {target} has matrices of {a} and {b}, which do not fit r = {rank}.")
    if max(ranks) > RANKS[-1]:
        raise _refused(f"its rank {max(ranks)} is larger than {RANKS[-1]}, which is vLLM's most.")
    return Fitted(name, folder, max(ranks), tower, newer=any(map(module_names.newer, matrices)))


def _check_place(place: str, target: str, architecture: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a module stands in the vision tower. Raises ModelError for one that is not there or takes no LoRA."""
    leaf = place.rsplit(".", 1)[-1]
    if len(shapes.get(place, ())) != 2:
        raise _refused(f"its base has no layer {target}.")
    if place.startswith("language_model.model.layers.") and leaf in DECODER:
        return False
    if place.startswith("vision_tower.") and leaf in TOWER:
        if architecture in TOWERS:
            return True
        raise _refused(
            f"it changes the vision tower ({target}), which vLLM cannot do for {architecture}: "
            "train it on the language model's layers only."
        )
    raise _refused(f"it changes {target}, and vLLM takes {', '.join(DECODER)} of the language model only.")


def _rank(target: str, config: Mapping[str, Any]) -> int:
    """Return a module's rank as PEFT finds it: the first key of rank_pattern that ends the module's name, else r."""
    matching = (rank for key, rank in config["rank_pattern"].items() if re.match(rf"(.*\.)?({key})$", target))
    return int(next(matching, config["r"]))


def _config(folder: Path) -> dict[str, Any]:
    """Read an adapter_config.json. Raises ModelError where it is broken or asks for more than plain LoRA."""
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text())
        rank = config["r"]
    except (OSError, ValueError, KeyError, TypeError):
        raise _broken(f"{folder / CONFIG} is no configuration of a LoRA: it needs r and lora_alpha.") from None
    alpha = config.get("lora_alpha")
    if not _whole(rank) or not isinstance(alpha, int | float) or isinstance(alpha, bool):
        raise _broken(f"{folder / CONFIG} needs a whole number r and a number lora_alpha.")
    for field, value in config.items():
        plain = PLAIN.get(field)
        if field in HARMLESS or value is None or (value in plain if plain else not value):
            continue
        instead = f"{field}: {plain[0]!r}" if plain else f"without {field}"
        raise _refused(f"{field} is {value!r}, and only plain LoRA is served ({instead}).")
    config["rank_pattern"] = _pattern("rank_pattern", config, _whole, "whole numbers")
    _pattern("alpha_pattern", config, lambda value: isinstance(value, int | float), "numbers")
    return config


def _pattern(field: str, config: Mapping[str, Any], fits: Callable[[Any], bool], kind: str) -> dict[str, Any]:
    """Return a rank_pattern or alpha_pattern, {} for none. Raises ModelError where it holds anything else."""
    pattern = config.get(field) or {}
    try:
        good = all(fits(value) and re.compile(key) for key, value in pattern.items())
    except (re.error, AttributeError):
        good = False
    if not good:
        raise _broken(f"its {field} is not made of modules' names and {kind}.")
    return dict(pattern)


def _whole(value: Any) -> bool:
    """Return whether a value is a whole number above nought; JSON's true is none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _matrices(folder: Path) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Each changed module's name -> the shapes of A [r, in] and B [out, r]."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for tensor, shape in hub.shapes(folder / WEIGHTS).items():
        name, _, kind = tensor.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        if kind not in ("lora_A", "lora_B") or not tensor.endswith(".weight"):
            raise _refused(f"its tensor {tensor} is not one of a LoRA as PEFT saves it (….lora_A.weight).")
        found.setdefault(name, {})[kind] = shape
    for name, pair in found.items():
        if len(pair) != 2:
            raise _broken(f"its {name} has only {'A' if 'lora_A' in pair else 'B'} of A and B.")
    if not found:
        raise _broken(f"{folder / WEIGHTS} holds no tensors.")
    return {name: (pair["lora_A"], pair["lora_B"]) for name, pair in found.items()}


def _shapes(base: Path) -> dict[str, tuple[int, ...]]:
    return {name: shape for file in sorted(base.glob("*.safetensors")) for name, shape in hub.shapes(file).items()}


def _broken(words: str) -> ModelError:
    return ModelError(words, code="adapter_broken")


def _refused(words: str) -> ModelError:
    return ModelError(words, code="adapter_refused")
