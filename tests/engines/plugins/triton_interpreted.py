"""PaliGemma with the Triton backend of a GPU, without one: whole engines whose attention runs in Triton's interpreter.

vLLM's kernels, the plugin's metadata and its scheduler are those of a GPU. There are too few
blocks for all requests, so that steps are mixed and requests are preempted. Run as a program of its own, as the
interpreter must be chosen before Triton is imported. Prints a line of JSON for each family.
"""

# ruff: noqa: E402  (the interpreter is chosen before Triton is imported)
import os

os.environ["TRITON_INTERPRET"] = "1"

import json
import tempfile
from pathlib import Path
from typing import Any

from serve.engines.vllm.torchvision import repair

repair()

import torch
import triton
import triton.language
import vllm.triton_utils

# vLLM for CPU takes no other Triton than one that compiles for CPU; the interpreter compiles nothing.
vllm.triton_utils.triton, vllm.triton_utils.tl = triton, triton.language
torch.cuda.get_device_capability = lambda *_: (9, 0)  # a kernel chooses its tiles by it

from inprocess import engine
from test_parity import differences, tiny
from vllm.platforms.cpu import CpuPlatform
from vllm.v1.attention.backends.registry import AttentionBackendEnum

from serve.engines.plugins import prefix_lm_vllm

CpuPlatform.get_attn_backend_cls = classmethod(lambda *_, **__: AttentionBackendEnum.TRITON_ATTN.get_path())

BLOCK, CONTEXT, TOKENS = 16, 64, 6
ROOM = {"paligemma": (10, 1), "paligemma2_window": (11, 0)}
"""Blocks in all, and steps between two arrivals: a request is preempted where a reply takes a new block."""
CHOSEN = (8, 11, 17)
"""Of the case's prompts those whose length leaves room for fewer than TOKENS tokens in their last block."""


class Counted(prefix_lm_vllm.TritonBuilder):
    """Counts steps in which some requests are in prefill and some in decoding, and those with a second kernel call."""

    mixed = parted = 0

    def build(self, *args: Any, **keywords: Any) -> Any:
        metadata = super().build(*args, **keywords)
        Counted.parted += getattr(metadata, "parts", None) is not None
        if isinstance(metadata.causal, torch.Tensor):
            Counted.mixed += len(metadata.causal.unique()) == 2
        return metadata


def check(family: str, folder: Path) -> dict[str, Any]:
    """Return what was counted, and the differences from transformers."""
    Counted.mixed = Counted.parted = 0
    case = tiny(family, folder)
    prompts = [case.prompts[at] for at in CHOSEN]
    blocks, every = ROOM[family]
    room = {"max_model_len": CONTEXT, "block_size": BLOCK, "num_gpu_blocks_override": blocks}
    with engine(folder, True, case.model.family_args, **room) as running:
        replies = running.say(prompts, tokens=TOKENS, every=every)
    ids, worst, greedy = differences(case, prompts, replies)
    counted = {"preempted": running.preemptions, "mixed": Counted.mixed, "parted": Counted.parted}
    return {"family": family, "of": len(prompts), "ids": ids, "error": worst, "greedy": greedy, **counted}


if __name__ == "__main__":
    prefix_lm_vllm.TritonBackend.get_builder_cls = staticmethod(lambda: Counted)
    for name in ROOM:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(check(name, Path(folder, name))), flush=True)
