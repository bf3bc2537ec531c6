"""vLLM's arguments: ours by kind of machine, and what a deployment sets instead."""

import os
from pathlib import Path

import pytest
from checkpoint_files import decoder, write_checkpoint

from serve.engines.vllm import compilers
from serve.engines.vllm.arguments import arguments, environment
from serve.engines.vllm.footprint import UTILIZATION
from serve.errors import ModelError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shapes = decoder("model.", layers=2, hidden=64, inner=128, heads=4, kv_heads=4, width=16, vocabulary=100)
    return write_checkpoint(tmp_path / "checkpoint", {"text_config": {"hidden_size": 64}}, shapes)


def test_a_deployments_argument_wins_over_ours(tmp_path: Path) -> None:
    deployment = {"compilation_config": {"cudagraph_mode": "NONE"}, "mm_processor_cache_gb": 8}
    chosen = arguments(tmp_path, {}, deployment, is_prefix_lm=False, cpu=False)
    assert chosen["compilation_config"] == deployment["compilation_config"] and chosen["mm_processor_cache_gb"] == 8


def test_batch_size_is_set_on_a_cpu_and_left_to_vllm_on_a_gpu(folder: Path) -> None:
    on_cpu = arguments(folder, {"max_model_len": 256}, {}, is_prefix_lm=False, cpu=True)
    on_gpu = arguments(folder, {"max_model_len": 256}, {}, is_prefix_lm=False, cpu=False)
    assert on_cpu["max_num_seqs"] == 64 and "compilation_config" not in on_cpu
    assert "max_num_seqs" not in on_gpu and "compilation_config" not in on_gpu


def test_engine_with_a_part_of_a_gpu_gets_a_computed_cache(folder: Path) -> None:
    alone = arguments(folder, {"max_model_len": 256}, {}, is_prefix_lm=False, cpu=False, gpu_bytes=24 << 30)
    assert "kv_cache_memory_bytes" not in alone and "gpu_memory_utilization" not in alone
    half = arguments(folder, {"max_model_len": 256}, {}, is_prefix_lm=False, cpu=False, share=0.5, gpu_bytes=24 << 30)
    assert half["gpu_memory_utilization"] == UTILIZATION / 2
    assert 0 < half["kv_cache_memory_bytes"] < UTILIZATION / 2 * (24 << 30)
    both = {"kv_cache_memory_bytes": 1 << 30, "gpu_memory_utilization": 0.3}
    given = arguments(
        folder, {"max_model_len": 256}, both, is_prefix_lm=False, cpu=False, share=0.5, gpu_bytes=24 << 30
    )
    assert {name: given[name] for name in both} == both


def test_part_of_a_gpu_that_is_too_small_is_refused_with_numbers(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"Too little of the GPU for checkpoint: 46% of 0.5 GB") as caught:
        arguments(folder, {"max_model_len": 256}, {}, is_prefix_lm=False, cpu=False, share=0.5, gpu_bytes=500_000_000)
    assert caught.value.code == "out_of_memory"


def toolkit(path: Path) -> None:
    """Write an nvcc and a ninja that can be found, as a CUDA toolkit and its user have them."""
    (path / "bin").mkdir(parents=True)
    for name in ("nvcc", "ninja"):
        (path / "bin" / name).write_text("#!/bin/sh\n")
        (path / "bin" / name).chmod(0o755)


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that is all of PATH: no compiler is found."""
    for name in ("CUDA_HOME", "CUDA_PATH", *compilers.NEEDS_NVCC, "VLLM_USE_FLASHINFER_SAMPLER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "cuda" / "bin"))
    monkeypatch.setattr(compilers, "CUDA_HOME", str(tmp_path / "none"))
    return tmp_path / "cuda"


def test_kernels_that_pip_cannot_compile_are_switched_off(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    environment(is_prefix_lm=False)
    switched = {name: os.environ.get(name) for name in compilers.NEEDS_NVCC}
    assert switched == compilers.NEEDS_NVCC and os.environ["VLLM_USE_FLASHINFER_SAMPLER"] == "0"


def test_switches_that_the_operator_sets_stay(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {**os.environ, "VLLM_USE_FLASHINFER_SAMPLER": "1", "VLLM_USE_DEEP_GEMM": "1"})
    environment(is_prefix_lm=False)
    assert (os.environ["VLLM_USE_FLASHINFER_SAMPLER"], os.environ["VLLM_USE_DEEP_GEMM"]) == ("1", "1")


def test_attention_avoids_flashinfer_where_vllm_prefers_that_and_no_compiler_is_there(bare: Path, folder: Path) -> None:
    def backend(capability: int) -> object:
        chosen = arguments(folder, {}, {}, is_prefix_lm=False, cpu=False, capability=capability)
        return chosen.get("attention_backend")

    assert (backend(9), backend(10), backend(12)) == (None, "FLASH_ATTN", None)
    prefix = arguments(folder, {}, {}, is_prefix_lm=True, cpu=False, capability=10)
    assert prefix["attention_backend"] == "TRITON_ATTN"
    toolkit(bare)
    assert backend(10) is None


def test_engine_of_any_architecture_is_set_up_by_the_checkpoints_files(tmp_path: Path) -> None:
    rope = {"original_max_position_embeddings": 64, "llama_4_scaling_beta": 0.1}
    text = {"max_position_embeddings": 262144, "rope_parameters": rope, "hidden_size": 64, "num_attention_heads": 2}
    write_checkpoint(tmp_path, {"text_config": text}, {"w": (2,)})
    chosen = arguments(tmp_path, {}, {}, is_prefix_lm=False, cpu=True, chat=True)
    assert chosen["max_model_len"] == 16384 and chosen["limit_mm_per_prompt"] == {"image": 1, "video": 0, "audio": 0}
    assert chosen["compilation_config"] == {"custom_ops": ["all", "-rotary_embedding"]}
    scaling = {"original_max_position_embeddings": 64, "beta": 0.1}
    assert chosen["hf_overrides"] == {"text_config": {"llama_4_scaling": scaling}}
    plain = arguments(tmp_path, {}, {"max_model_len": 512}, is_prefix_lm=False, cpu=True)
    assert plain["max_model_len"] == 512 and not {"compilation_config", "hf_overrides"} & plain.keys()


@pytest.mark.slow
def test_checkpoint_in_two_layouts_is_loaded_in_that_of_transformers(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {"text_config": {"hidden_size": 64}}, {"w": (2,)})
    chosen = {"max_model_len": 64}
    before = arguments(tmp_path, chosen, {}, is_prefix_lm=False, cpu=False, chat=True)
    (tmp_path / "consolidated.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes())
    both = arguments(tmp_path, chosen, {}, is_prefix_lm=False, cpu=False, chat=True)
    added = {"config_format": "hf", "load_format": "hf", "tokenizer_mode": "hf"}
    assert both == {**before, **added} and not added.keys() & before.keys()
