"""Tiny random LoRAs in PEFT's format, and the checkpoint that each amounts to: W + alpha / r * B A."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serve.engines import module_names

RANK, ALPHA = 4, 8
LANGUAGE = re.compile(r"language_model\.model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj$")
TOWER = re.compile(r"vision_tower\.vision_model\.encoder\.layers\.\d+\.(self_attn\.\w+|mlp\.fc[12])$")


def make(base: Path, folder: Path, *modules: re.Pattern[str], newer: bool = False, seed: int = 3) -> Path:
    """A LoRA of these modules of `base`, and beside it in `merged` the checkpoint with it worked in, in float32.

    newer: the modules are named as transformers 5 names them. B is as large as it takes to change most replies.
    """
    import torch
    from safetensors.torch import load_file, save_file

    draw = torch.Generator().manual_seed(seed)
    weights, lora = load_file(base / "model.safetensors"), {}
    for name, weight in weights.items():
        weights[name] = weight = weight.float()
        module = module_names.older(name.removesuffix(".weight"))
        if weight.ndim == 2 and any(pattern.fullmatch(module) for pattern in modules):
            a = torch.randn(RANK, weight.shape[1], generator=draw) / weight.shape[1] ** 0.5
            b = (
                torch.randn(weight.shape[0], RANK, generator=draw)
                * weight.std()
                * (weight.shape[1] / RANK) ** 0.5
                * 0.3
            )
            module_name = _as_transformers_5(module) if newer else module
            lora[f"base_model.model.{module_name}.lora_A.weight"] = a
            lora[f"base_model.model.{module_name}.lora_B.weight"] = b
            weights[name] = weight + ALPHA / RANK * b @ a
    write(folder, lora)
    merged = folder / "merged"
    shutil.copytree(base, merged)
    save_file(weights, merged / "model.safetensors", metadata={"format": "pt"})
    return folder


def write(folder: Path, tensors: Mapping[str, Any], **config: Any) -> Path:
    """An adapter's two files. config: fields of adapter_config.json besides the plain ones."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    plain = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "bias": "none", "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps({**plain, **config}))
    return folder


def saved_by_transformers_5(base: Path, folder: Path) -> Path:
    """Copy a checkpoint, renaming its modules as transformers 5 does when it saves a fine-tune."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(base, folder)
    weights = load_file(folder / "model.safetensors")
    moved = {name.replace("vision_tower.vision_model.", "vision_tower."): weight for name, weight in weights.items()}
    assert moved.keys() != weights.keys()
    save_file(moved, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _as_transformers_5(module: str) -> str:
    for now, before in module_names.MOVED:
        if module.startswith(before):
            module = now + module.removeprefix(before)
    return module.replace("vision_tower.vision_model.", "vision_tower.").replace("language_model.lm_head.", "lm_head.")
