"""How many requests an engine takes at a time on a card, and which batches it records as CUDA graphs.

vLLM's defaults go by the card alone, up to 1024 requests of text. A picture is hundreds of tokens: an 80 GB card holds
some 140 requests to LLaVA-1.5-7B. What is admitted beyond that is put out again when replies grow, and its picture is
computed anew. All is computed here from the card's memory and the checkpoint's shape; README.md says how, and what it
leaves to vLLM. Nothing of it was measured on a GPU.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serve.engines import memory

UTILIZATION = 0.92
"""vLLM's gpu_memory_utilization where nobody says another."""
WORK = 2 << 30
"""Bytes for activations, CUDA graphs and CUDA itself."""
WORDS = 256
"""Tokens of a question and its answer, beside the picture's."""
LEAST, MOST = 8, 512
GRAPHS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Sizes of batches that are recorded, a quarter as many as vLLM's own: each takes its time at the start. A batch
between two is filled up to the larger one, which costs little: a step in which all speak is the reading of weights."""


def arguments(folder: Path, chosen: Mapping[str, Any], card: int) -> dict[str, Any]:
    """vLLM arguments for a checkpoint on a card of so many bytes, where `chosen` says nothing of them."""
    seqs = int(chosen.get("max_num_seqs") or requests(folder, chosen, card))
    sizes = [size for size in GRAPHS if size < seqs] + [seqs]
    return {"max_num_seqs": seqs, "compilation_config": {"cudagraph_capture_sizes": sizes}}


def requests(folder: Path, chosen: Mapping[str, Any], card: int) -> int:
    """How many requests with a picture have their keys and values in memory at a time, all cards taken together."""
    cards = int(chosen.get("tensor_parallel_size", 1)) * int(chosen.get("pipeline_parallel_size", 1))
    room = cards * (card * float(chosen.get("gpu_memory_utilization", UTILIZATION)) - WORK) - memory.stored(folder)
    held = int(room // (memory.token_bytes(folder, "bfloat16") * (picture_tokens(folder) + WORDS)))
    return max(LEAST, min(MOST, held))


def picture_tokens(folder: Path) -> int:
    """Tokens of a picture seen once; LLaVA-NeXT and OneVision see large ones in several parts besides."""
    vision = json.loads((folder / "config.json").read_text()).get("vision_config", {})
    return int((vision.get("image_size", 336) // vision.get("patch_size", 14)) ** 2)
