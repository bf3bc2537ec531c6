"""Check LoRA adapters (arXiv 2106.09685) in PEFT's format against the checkpoint that they change.

Faults are found here, from file headers, before an engine starts. vLLM would find some only when the adapter is first
used, and silently ignores matrices for modules that it does not know. What vLLM 0.32 supports was tested
(tests/engines/test_adapters.py, NOTES.md).
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
CONFIG_BYTES = 2**20
"""Size of an adapter_config.json, at most."""
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the values that vLLM allows for max_lora_rank
PREFIX = "base_model.model."  # PEFT's prefix of module names

ARCHITECTURES = (
    "LlavaForConditionalGeneration",
    "LlavaNextForConditionalGeneration",
    "LlavaNextVideoForConditionalGeneration",
    "PaliGemmaForConditionalGeneration",
)
"""Architectures whose language model takes adapters in vLLM 0.32. LLaVA-OneVision's does not."""

TOWERS = ("PaliGemmaForConditionalGeneration",)
"""Architectures whose vision tower takes adapters too. With CLIP vLLM 0.32 omits the class token and dies at the first
image."""

DECODER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TOWER = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")

# Fields of adapter_config.json and their values for plain LoRA, W + alpha / r * B A. Other values change the formula.
PLAIN: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
}

HARMLESS = frozenset(
    (
        # Rank and scale: checked against the matrices, or applied by vLLM.
        *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora"),
        # The trained layers: the matrices' names are checked instead.
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
        # How it was trained and saved.
        *("lora_dropout", "inference_mode", "task_type", "auto_mapping", "base_model_name_or_path", "revision"),
        *("peft_version", "runtime_config", "ephemeral_gpu_offload", "megatron_config", "megatron_core"),
        # Settings of an initialisation or a variant, which another field enables.
        *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size"),
    )
)
"""Fields of adapter_config.json that may have any value. Other fields must be empty or false: fields that PEFT adds
mostly change the meaning of the matrices (block-diagonal LoRA, trained tokens), and vLLM ignores them."""


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter. name: its model's. checkpoint: a folder or a hub id, with `revision`."""

    name: str
    checkpoint: str
    revision: str | None = None


@dataclass(frozen=True)
class CheckedAdapter:
    """An adapter that fits its base. rank: the largest of its matrices. tower: whether it changes the vision tower too.
    newer: whether it names modules as newer releases of transformers do (module_names.py)."""

    name: str
    folder: Path
    rank: int
    tower: bool
    newer: bool


def fit(
    adapter: Adapter,
    base: Path,
    *,
    progress: Callable[[str], None] = lambda step: None,
) -> CheckedAdapter:
    """Locate an adapter and check it against the checkpoint in `base`. Raises ModelError that names the adapter."""
    try:
        folder = hub.locate(adapter.checkpoint, adapter.revision, progress=progress, check=check_files)
        return _fit(adapter.name, folder, base)
    except ModelError as error:
        raise ModelError(f"The adapter {adapter.name} cannot be used: {error.message}", code=error.code) from error


def lora_arguments(
    fitted: Sequence[CheckedAdapter], *, cpu: bool, further: int = 0, further_rank: int = 1
) -> dict[str, Any]:
    """Return vLLM engine arguments for these adapters, and for `further` ones that may be loaded later; {} without any.

    further_rank: the largest rank of those. One slot stays empty on a CPU: for a prompt without an adapter vLLM 0.32
    uses slot -1 there, the last one, so an adapter in it would change all replies of the base (measured).
    """
    if not fitted and not further:
        return {}
    slots = len(fitted) + further + cpu
    rank = max([adapter.rank for adapter in fitted] + [further_rank] * bool(further))
    towers = {"enable_tower_connector_lora": True} if any(adapter.tower for adapter in fitted) else {}
    return {
        "enable_lora": True,
        "max_loras": slots,
        "max_cpu_loras": slots,
        "max_lora_rank": next(size for size in RANKS if size >= rank),
        **towers,
    }


def locate_in(within: Path, path: str, most_mb: float) -> Path:
    """Return the folder of an adapter at `path` in the folder `within`, with links resolved.

    Raises ModelError where there is none, where it or a file of it is outside of `within`, where files are missing, or
    where they have more than most_mb MiB.
    """
    try:
        outermost, folder = within.resolve(strict=True), (within / path).resolve(strict=True)
        if not folder.is_dir():
            raise NotADirectoryError(path)
        files = [(folder / name).resolve(strict=True) for name in (CONFIG, WEIGHTS) if (folder / name).exists()]
        if not all(file.is_relative_to(outermost) for file in (folder, *files)):
            raise _refused(f"{path} leads out of {within}.")
        check_files(folder)
        sizes = [file.stat().st_size for file in files]
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, and a name that no file can have
        why = getattr(error, "strerror", None) or "No such folder"
        raise ModelError(f"There is no folder {path} that can be read: {why}.", code="adapter_missing") from None
    if sizes[0] > CONFIG_BYTES or sum(sizes) > most_mb * 2**20:
        raise _refused(f"{path} has {sum(sizes) / 2**20:.1f} MiB, and {most_mb:g} are allowed.")
    return folder


def check_architecture(base: Path) -> str:
    """Return a checkpoint's architecture. Raises ModelError where it takes no adapters."""
    architecture: str = (json.loads((base / "config.json").read_text()).get("architectures") or ["unknown"])[0]
    if architecture not in ARCHITECTURES:
        raise _refused(f"vLLM has no LoRA for its base's architecture, {architecture}.")
    return architecture


def check_files(folder: Path) -> None:
    """Raise ModelError where an adapter's files are missing or truncated."""
    if not (folder / CONFIG).is_file():
        raise _broken(f"{folder} has no {CONFIG}.")
    if not (folder / WEIGHTS).is_file():
        unsafe = (folder / "adapter_model.bin").is_file()
        advice = " (its adapter_model.bin may run code when it is read: save it as safetensors)" if unsafe else ""
        raise _broken(f"{folder} has no {WEIGHTS}{advice}.")
    hub.check_length(folder / WEIGHTS)


def _fit(name: str, folder: Path, base: Path) -> CheckedAdapter:
    architecture = check_architecture(base)
    config = _config(folder)
    ranks = [config["r"], *config["rank_pattern"].values()]
    shapes = {module_names.older(tensor.removesuffix(".weight")): shape for tensor, shape in _shapes(base).items()}
    matrices = _matrices(folder)
    tower, modules = False, set()
    for target, (a, b) in matrices.items():
        module = module_names.older(target)
        if module in modules:
            raise _broken(f"it changes {target} twice, under two names.")
        modules.add(module)
        tower |= _check_module(module, target, architecture, shapes)
        out, width = shapes[module]
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
    return CheckedAdapter(name, folder, max(ranks), tower, newer=any(map(module_names.newer, matrices)))


def _check_module(module: str, target: str, architecture: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Return whether a module is in the vision tower. Raises ModelError where it is absent or takes no LoRA."""
    leaf = module.rsplit(".", 1)[-1]
    if len(shapes.get(module, ())) != 2:
        raise _refused(f"its base has no layer {target}.")
    if module.startswith("language_model.model.layers.") and leaf in DECODER:
        return False
    if module.startswith("vision_tower.") and leaf in TOWER:
        if architecture in TOWERS:
            return True
        raise _refused(
            f"it changes the vision tower ({target}), which vLLM cannot do for {architecture}: "
            "train it on the language model's layers only."
        )
    raise _refused(f"it changes {target}, and vLLM takes {', '.join(DECODER)} of the language model only.")


def _rank(target: str, config: Mapping[str, Any]) -> int:
    """Return a module's rank as PEFT does: that of the first rank_pattern that matches its name's end, else r."""
    matching = (rank for key, rank in config["rank_pattern"].items() if re.match(rf"(.*\.)?({key})$", target))
    return int(next(matching, config["r"]))


def _config(folder: Path) -> dict[str, Any]:
    """Read an adapter_config.json. Raises ModelError where it is malformed or not plain LoRA."""
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text())
        rank = config["r"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise _broken(f"{folder / CONFIG} is no configuration of a LoRA: it needs r and lora_alpha.") from None
    alpha = config.get("lora_alpha")
    if not _is_positive_integer(rank) or not isinstance(alpha, int | float) or isinstance(alpha, bool):
        raise _broken(f"{folder / CONFIG} needs a whole number r and a number lora_alpha.")
    for field, value in config.items():
        plain = PLAIN.get(field)
        if field in HARMLESS or value is None or (value in plain if plain else not value):
            continue
        instead = f"{field}: {plain[0]!r}" if plain else f"without {field}"
        raise _refused(f"{field} is {value!r}, and only plain LoRA is served ({instead}).")
    config["rank_pattern"] = _pattern("rank_pattern", config, _is_positive_integer, "whole numbers")
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


def _is_positive_integer(value: Any) -> bool:
    """Return whether a value is an integer of at least 1; JSON's true is not."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _matrices(folder: Path) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Read the shapes of A [r, in] and B [out, r] by the name of the changed module. Raises ModelError."""
    pairs: dict[str, dict[str, tuple[int, ...]]] = {}
    for tensor, shape in hub.shapes(folder / WEIGHTS).items():
        name, _, kind = tensor.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        if kind not in ("lora_A", "lora_B") or not tensor.endswith(".weight"):
            raise _refused(f"its tensor {tensor} is not one of a LoRA as PEFT saves it (….lora_A.weight).")
        pairs.setdefault(name, {})[kind] = shape
    for name, pair in pairs.items():
        if len(pair) != 2:
            raise _broken(f"its {name} has only {'A' if 'lora_A' in pair else 'B'} of A and B.")
    if not pairs:
        raise _broken(f"{folder / WEIGHTS} holds no tensors.")
    return {name: (pair["lora_A"], pair["lora_B"]) for name, pair in pairs.items()}


def _shapes(base: Path) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, (_, shape) in hub.all_tensors(base).items()}


def _broken(message: str) -> ModelError:
    return ModelError(message, code="adapter_broken")


def _refused(message: str) -> ModelError:
    return ModelError(message, code="adapter_refused")
