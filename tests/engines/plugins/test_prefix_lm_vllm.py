"""The plugin's parts inside vLLM, on metadata of our own making: no engine, but vLLM's classes."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from serve.engines.plugins import prefix_lm
from serve.engines.vllm.torchvision import repair

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore")]

ROOT = Path(__file__).parents[3]
TRITON = ROOT / "build" / "triton"
PALIGEMMA = types.SimpleNamespace(
    model_config=types.SimpleNamespace(
        architectures=["PaliGemmaForConditionalGeneration"], hf_text_config=types.SimpleNamespace(sliding_window=25)
    )
)
LLAVA = types.SimpleNamespace(
    model_config=types.SimpleNamespace(architectures=["LlavaForConditionalGeneration"], is_mm_prefix_lm=False)
)


def step(prefilling: list[bool], query: list[int], total: list[int]):
    """Return vLLM's common metadata of a step. query, total: tokens of each request in this step, and up to its end."""
    repair()
    import torch
    from vllm.v1.attention.backend import CommonAttentionMetadata

    starts = torch.tensor([0, *query]).cumsum(0).int()
    lengths = torch.tensor(total, dtype=torch.int32)
    return CommonAttentionMetadata(
        query_start_loc=starts,
        query_start_loc_cpu=starts,
        seq_lens=lengths,
        seq_lens_cpu_upper_bound=lengths,
        num_reqs=len(query),
        num_actual_tokens=sum(query),
        max_query_len=max(query),
        max_seq_len=max(total),
        block_table_tensor=torch.zeros(len(query), 4, dtype=torch.int32),
        slot_mapping=torch.arange(sum(query)),
        is_prefilling=torch.tensor(prefilling),
    )


def triton(config: object):
    """Return the Triton builder without the scratch memory of a GPU."""
    from serve.engines.plugins.prefix_lm_vllm import TritonBuilder

    builder = TritonBuilder.__new__(TritonBuilder)
    builder.vllm_config = config
    builder.seq_threshold_3D = builder.num_par_softmax_segments = builder.max_seqs_64_segments = 0
    builder.softmax_segm_output = builder.softmax_segm_max = builder.softmax_segm_expsum = None
    builder.rswa_window = None
    return builder


def test_the_triton_metadata_carries_a_flag_per_request() -> None:
    import torch

    common = step([True, False, True], [20, 1, 30], [20, 57, 30])
    causal = triton(PALIGEMMA).build(0, common).causal
    assert causal.tolist() == [0, 1, 0] and causal.dtype == torch.int32
    assert common.causal is True  # the step's own metadata, which others read too, is untouched


def test_prompt_longer_than_the_window_gets_metadata_of_its_own() -> None:
    common = step([True, False, True], [20, 1, 30], [20, 57, 30])
    prefilling, generating = triton(PALIGEMMA).build(0, common).parts
    assert prefilling.prefill and prefilling.tokens.tolist() == [*range(20), *range(21, 51)]
    assert prefilling.metadata.causal is False
    assert prefilling.metadata.query_start_loc.tolist() == [0, 20, 50]
    assert prefilling.metadata.seq_lens.tolist() == [20, 30]
    assert not generating.prefill and generating.tokens.tolist() == [20]
    assert generating.metadata.causal is True and generating.metadata.seq_lens.tolist() == [57]
    assert not hasattr(triton(PALIGEMMA).build(0, step([True, False], [25, 1], [25, 57])), "parts")


@pytest.mark.skipif(not (TRITON / "triton").is_dir(), reason="Triton is not in build/triton: make install-dev")
def test_paligemma_with_tritons_kernels_interpreted_equals_transformers() -> None:
    """vLLM's own kernels: no GPU is needed, but Triton is, which an installation for CPU leaves out."""
    program = Path(__file__).with_name("triton_interpreted.py")
    folders = [ROOT, ROOT / "tests", ROOT / "tests/engines", TRITON]
    done = subprocess.run(
        [sys.executable, program],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = {line["family"]: line for line in map(json.loads, done.stdout.splitlines()) if isinstance(line, dict)}
    assert list(results) == ["paligemma", "paligemma2_window"]
    for result in results.values():
        assert result["ids"] == result["greedy"] == result["of"] and result["error"] < 1e-4
        assert result["mixed"] >= 2 and result["preempted"] >= 1
    assert results["paligemma2_window"]["parted"] >= 2  # prompts beyond the window take a second kernel call


def test_decoding_steps_and_other_models_are_unchanged() -> None:
    assert triton(PALIGEMMA).build(0, step([False, False], [1, 1], [20, 57])).causal is True
    assert triton(LLAVA).build(0, step([True, False], [20, 1], [20, 57])).causal is True


def test_prompt_from_a_cache_raises() -> None:
    with pytest.raises(prefix_lm.SpanCut):
        triton(PALIGEMMA).build(0, step([True], [8], [24]))


def test_only_decoding_steps_are_captured_as_whole_graphs() -> None:
    step([True], [1], [1])
    from vllm.v1.attention.backend import AttentionCGSupport

    from serve.engines.plugins.prefix_lm_vllm import TritonBuilder

    assert TritonBuilder.get_cudagraph_support(PALIGEMMA, None) == AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE
    assert TritonBuilder.get_cudagraph_support(LLAVA, None) == AttentionCGSupport.ALWAYS


def test_registering_twice_is_registering_once() -> None:
    repair()
    prefix_lm.register()
    prefix_lm.register()
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    from serve.engines.plugins.prefix_lm_vllm import CpuImpl, TritonImpl

    assert AttentionBackendEnum.CPU_ATTN.get_class().get_impl_cls() is CpuImpl
    assert AttentionBackendEnum.TRITON_ATTN.get_class().get_impl_cls() is TritonImpl
    assert AttentionBackendEnum.CPU_ATTN.get_class().__name__ == "CpuBackend"
    assert AttentionBackendEnum.TRITON_ATTN.get_class().__name__ == "TritonBackend"
    assert AttentionBackendEnum.TRITON_ATTN.get_class().get_name() == "TRITON_ATTN"
