"""Estimate the memory that a checkpoint needs on a CPU before anything is loaded."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from serve.errors import ModelError

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "half": 2, "float": 4}
PROCESS = 1 << 30  # Python, torch and vLLM in two processes, before any weight: measured 0.9 GiB
KV_LEAST, KV_MOST = 64 << 20, 4 << 30


def kv_bytes(folder: Path, chosen: Mapping[str, Any]) -> int:
    """Return the bytes of a key-value cache for max_num_seqs sequences of full length, between 64 MiB and 4 GiB.

    It holds at least one sequence. Pages are touched only when they are used, so small models use less than that.
    """
    context = chosen.get("max_model_len") or _text(folder).get("max_position_embeddings", 4096)
    sequence = token_bytes(folder, chosen.get("dtype", "")) * (context + 128)
    wanted = sequence * int(chosen.get("max_num_seqs", 64))
    return int(max(KV_LEAST, sequence, min(KV_MOST, wanted)))


def token_bytes(folder: Path, dtype: str) -> int:
    """Return the bytes of one token's keys and values in all layers."""
    text = _text(folder)
    heads = text.get("num_attention_heads", 32)
    width = text.get("head_dim") or text.get("hidden_size", 4096) // heads
    kv_heads = text.get("num_key_value_heads") or heads
    return int(2 * text.get("num_hidden_layers", 32) * kv_heads * width * BYTES.get(dtype, 4))


def stored(folder: Path) -> int:
    """Return the bytes of the weights on disk."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _text(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return dict(config.get("text_config", config))


def check_memory(folder: Path, chosen: Mapping[str, Any]) -> None:
    """Raise ModelError, with numbers, when the free memory cannot hold the weights and the key-value cache."""
    weights = (
        stored(folder) * BYTES.get(chosen.get("dtype", ""), 2) // 2
    )  # published checkpoints store two bytes a weight
    wanted = weights + chosen["kv_cache_memory_bytes"] + PROCESS
    free = available()
    if wanted > free:
        raise ModelError(
            f"Too little memory for {folder.name}: {_gib(wanted)} wanted "
            f"(weights {_gib(weights)}, key-value cache {_gib(chosen['kv_cache_memory_bytes'])}), {_gib(free)} free.",
            code="out_of_memory",
        )


def available() -> int:
    """Return the bytes that a new process can have: free in the machine, or in the container where that is less."""
    free = int(psutil.virtual_memory().available)
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        return free if limit == "max" else min(free, int(limit) - used)
    except (OSError, ValueError):
        return free


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
