"""The Triton backend without a GPU: vLLM's kernel in Triton's interpreter, against a softmax under the mask itself.

Run as a program of its own, as the interpreter must be chosen before Triton is imported. Prints the largest error of
a global and of a sliding layer, with the plugin and with its second look left out.
"""

# ruff: noqa: E402  (the interpreter is chosen before Triton is imported)
import os

os.environ["TRITON_INTERPRET"] = "1"

import types
from typing import Any

from serve.engines.vllm.torchvision import repair

repair()

import torch
import triton
import triton.language
import vllm.triton_utils

# vLLM for CPU takes no other Triton than one that compiles for CPU; the interpreter compiles nothing.
vllm.triton_utils.triton, vllm.triton_utils.tl, vllm.triton_utils.HAS_TRITON = triton, triton.language, True

from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.kv_cache_interface import KVQuantMode

from serve.engines.plugins import prefix_lm_vllm

HEADS, SIZE, BLOCK, WINDOW, CAP, SCALE = 4, 32, 16, 8, 20.0, 0.3
# Prompts longer and shorter than the window are read, a word is spoken, and a preempted reply is computed anew.
QUERY, TOTAL, READS = [20, 1, 37, 6, 7], [20, 45, 37, 40, 7], [True, False, True, False, True]
MODEL = types.SimpleNamespace(
    architectures=["PaliGemmaForConditionalGeneration"], hf_text_config=types.SimpleNamespace(sliding_window=WINDOW)
)


def builder() -> Any:
    """Return the metadata builder without the scratch memory of a GPU."""
    result = prefix_lm_vllm.TritonBuilder.__new__(prefix_lm_vllm.TritonBuilder)
    result.vllm_config = types.SimpleNamespace(model_config=MODEL)
    result.max_seqs_64_segments = 0
    result.seq_threshold_3D = result.num_par_softmax_segments = None
    result.softmax_segm_output = result.softmax_segm_max = result.softmax_segm_expsum = None
    result.rswa_window = None
    return result


def layer(window: int | None) -> Any:
    """Return an attention layer with the kernel arguments that otherwise depend on the GPU."""
    result = prefix_lm_vllm.TritonImpl.__new__(prefix_lm_vllm.TritonImpl)
    result.__dict__.update(
        head_size=SIZE, scale=SCALE, alibi_slopes=None, use_alibi_sqrt=False, logits_soft_cap=CAP, sinks=None,
        sliding_window=(-1, -1) if window is None else (window - 1, 0), attn_type="decoder", kv_cache_dtype="auto",
        _kv_quant_mode=KVQuantMode.NONE, _is_per_token_head_quant=False, chunk_lookback=-1, use_td=False,
        fp8_dtype=torch.float8_e4m3fn,
    )  # fmt: skip
    return result


def error(window: int | None, *, second_look: bool = True) -> float:
    generator = torch.Generator().manual_seed(0)
    blocks = [-(-total // BLOCK) for total in TOTAL]
    query = torch.randn(sum(QUERY), HEADS, SIZE, generator=generator) * 2
    cache = torch.randn(sum(blocks) + 1, 1, BLOCK, 2 * SIZE, generator=generator)
    table = torch.zeros(len(QUERY), max(blocks), dtype=torch.int32)
    for row, count in enumerate(blocks):
        first = 1 + sum(blocks[:row])
        table[row, :count] = torch.arange(first, first + count)
    starts = torch.tensor([0, *QUERY]).cumsum(0).int()
    lengths = torch.tensor(TOTAL, dtype=torch.int32)
    metadata = builder().build(
        0,
        CommonAttentionMetadata(
            query_start_loc=starts, query_start_loc_cpu=starts, seq_lens=lengths, seq_lens_cpu_upper_bound=lengths,
            num_reqs=len(QUERY), num_actual_tokens=sum(QUERY), max_query_len=max(QUERY), max_seq_len=max(TOTAL),
            block_table_tensor=table, slot_mapping=torch.arange(sum(QUERY)), is_prefilling=torch.tensor(READS),
        ),
    )  # fmt: skip
    if not second_look:
        metadata.parts = None
    scale_one = torch.ones(1)
    scales = types.SimpleNamespace(_q_scale=scale_one, _k_scale=scale_one, _v_scale=scale_one)
    output = layer(window).forward(scales, query, None, None, cache, metadata, torch.zeros_like(query))
    worst = 0.0
    for row, (new, total, reads) in enumerate(zip(QUERY, TOTAL, READS, strict=True)):
        keys, values = cache[table[row, : blocks[row]].long(), 0].reshape(-1, 2 * SIZE)[:total].split(SIZE, -1)
        at, key = torch.arange(total - new, total)[:, None], torch.arange(total)[None]
        visible = torch.ones(new, total, dtype=torch.bool) if reads else key <= at
        if window is not None and not reads:
            visible = visible & (at - key < window)
        own_tokens = slice(int(starts[row]), int(starts[row + 1]))
        scores = torch.tanh(torch.einsum("qhd,kd->hqk", query[own_tokens], keys) * SCALE / CAP) * CAP
        weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
        worst = max(worst, float((torch.einsum("hqk,kd->qhd", weights, values) - output[own_tokens]).abs().max()))
    return worst


if __name__ == "__main__":
    print(error(None), error(WINDOW), error(WINDOW, second_look=False))
