"""Environment variables and engine arguments of vLLM, the latter from four sources in a fixed order."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from serve.engines import adapters as loras
from serve.engines import hub, module_names
from serve.engines.chat_settings import LONGEST
from serve.engines.checkpoint_facts import read_facts
from serve.engines.description import read
from serve.engines.plugins import prefix_lm, weight_reads
from serve.engines.vllm import compilers, memory
from serve.engines.vllm.footprint import UTILIZATION, footprint, settings
from serve.engines.vllm.torchvision import repair
from serve.errors import ModelError

ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",  # its warnings are about choices that are made below on purpose
    "TRANSFORMERS_VERBOSITY": "error",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    # FlashInfer compiles its sampler with nvcc at first use, and ends the engine where there is none (vllm#49497).
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    # Outputs in a turn of the replica's event loop: one of a whole reply has up to 32 tokens (few_messages.py).
    "VLLM_V1_OUTPUT_PROC_CHUNK_SIZE": "16",
    "VLLM_NO_USAGE_STATS": "1",  # no usage reports, which also wait for a network
    "TOKENIZERS_PARALLELISM": "false",  # its threads compete with the engine for the cores
    # Idle OpenMP threads spin by default: on two cores, two engines and a gateway starve each other.
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
}

COMMON: dict[str, Any] = {
    "enable_log_requests": False,
    "disable_log_stats": True,  # computed in each step for metrics that are not scraped in a replica
    "limit_mm_per_prompt": {"image": 1},
    "scheduling_policy": "priority",  # Prompt.batch waits for all others; among equals, first come, first served
    "structured_outputs_config": {
        "backend": "xgrammar",
        "disable_any_whitespace": True,
    },  # otherwise a weak model generates only blanks
    "use_tqdm_on_load": False,
}

GPU: dict[str, Any] = {
    # Processed images kept for further prompts about them, in main memory: 1500 of LLaVA-1.5's, 300 of NeXT's.
    "mm_processor_cache_gb": 2,
}

CPU: dict[str, Any] = {
    "mm_processor_cache_gb": 0.25,  # the same on a laptop; vLLM's default is 4
    "dtype": "float32",  # without AVX512 bf16 a bf16 product takes thirty times as long
    "enforce_eager": True,  # compiling costs half a minute at each start
    "skip_mm_profiling": True,  # the KV cache is sized below, so profiling with a dummy image is not needed
    "max_num_seqs": 64,
    # As a class and not as "uni", which vLLM replaces by "mp" on a CPU: a second process that imports everything.
    "distributed_executor_backend": "vllm.v1.executor.uniproc_executor.UniProcExecutor",
}


CHAT: dict[str, Any] = {
    "limit_mm_per_prompt": {"image": 1, "video": 0, "audio": 0},
    "worker_extension_cls": weight_reads.EXTENSION,
}
"""Arguments for checkpoints of any architecture."""
CLIP_LIKE = (None, "clip_vision_model", "siglip_vision_model")
"""Vision towers whose tensors have `vision_model.` in their names; Pixtral's, in the same class of vLLM's, have not."""
TRANSFORMERS_LAYOUT: dict[str, Any] = {"config_format": "hf", "load_format": "hf", "tokenizer_mode": "hf"}
CHAT_CPU: dict[str, Any] = {
    # vLLM's kernel rotates q and k of three dimensions wrongly, as LFM2 has them: log-probabilities off by 2.9.
    "compilation_config": {"custom_ops": ["all", "-rotary_embedding"]},
}


def environment(is_prefix_lm: bool) -> None:
    """Set the variables that vLLM needs before it is imported. Values that the operator has set stay."""
    repair()
    for name, value in {**ENVIRONMENT, **({} if compilers.nvcc() else compilers.NEEDS_NVCC)}.items():
        os.environ.setdefault(name, value)
    if is_prefix_lm:
        os.environ.update(prefix_lm.ENVIRONMENT)


def planned(
    family_args: Mapping[str, Any], engine_args: Mapping[str, Any], *, is_prefix_lm: bool, cpu: bool
) -> dict[str, Any]:
    """Return the engine arguments that a plan of the memory goes by, in the order of `arguments`."""
    safe = prefix_lm.SAFE_ARGS["prompt" if is_prefix_lm else "causal"]
    return {**COMMON, **(CPU if cpu else GPU), **family_args, **engine_args, **safe}


def arguments(
    folder: Path,
    family_args: Mapping[str, Any],
    engine_args: Mapping[str, Any],
    *,
    is_prefix_lm: bool,
    cpu: bool,
    adapters: Sequence[loras.CheckedAdapter] = (),
    further_adapters: int = 0,
    further_rank: int = 1,
    share: float = 1.0,
    gpu_bytes: int = 0,
    capability: int = 0,
    chat: bool = False,
) -> dict[str, Any]:
    """Return keyword arguments of AsyncEngineArgs: our defaults, then the family's, the deployment's, those for safety.

    Later ones override earlier ones. family_args: required by the model. engine_args: the deployment's `engine` in
    YAML. adapters: those that the engine serves; further_adapters: those that may come later, of further_rank at most.
    share: its part of a GPU of `gpu_bytes`; an engine with a part gets a computed key-value cache, since vLLM would
    measure what all engines of the GPU do just then. capability: the major compute capability of the GPU. chat: for an
    engine of any architecture. Raises ModelError when one of them sets an argument that is unsafe for a prefix LM, or
    when the memory cannot hold the model.
    """
    chosen = {
        **COMMON,
        **(CPU if cpu else {**GPU, **compilers.attention(capability)}),
        **(_by_files(folder) if chat else {}),
        **(CHAT_CPU if chat and cpu else {}),
        **family_args,
        **engine_args,
        **loras.lora_arguments(adapters, cpu=cpu, further=further_adapters, further_rank=further_rank),
    }
    if further_adapters or any(adapter.newer for adapter in adapters) or module_names.any_newer(folder):
        chosen.setdefault("worker_extension_cls", module_names.EXTENSION)
    if chat and module_names.any_newer(folder) and read_facts(folder).vision in CLIP_LIKE:
        chosen["worker_extension_cls"] = weight_reads.WITH_NEWER_NAMES
    if cpu and chosen.get("tensor_parallel_size", 1) > 1 and "distributed_executor_backend" not in engine_args:
        chosen["distributed_executor_backend"] = "mp"
    safe = _safe(folder, is_prefix_lm=is_prefix_lm, cpu=cpu)
    given = {**COMMON, **family_args, **engine_args}
    for name, value in safe.items():
        if name in given and given[name] != value:
            raise ModelError(
                f"{name} must stay {value!r} for a prefix language model: its answers would be wrong.",
                code="unsafe_argument",
            )
    chosen.update(safe)
    if cpu or share < 1:
        chosen.update(_memory(folder, chosen, cpu, share, gpu_bytes))
    return {**chosen, "model": str(folder)}


def _safe(folder: Path, *, is_prefix_lm: bool, cpu: bool) -> dict[str, Any]:
    """Return the arguments without which its answers would be wrong, by which of its tokens see later ones."""
    if is_prefix_lm:
        return {**prefix_lm.SAFE_ARGS["prompt"], **({} if cpu else prefix_lm.GPU_ARGS)}
    return dict(prefix_lm.SAFE_ARGS["picture" if read_facts(folder).attention == "picture" else "causal"])


def _by_files(folder: Path) -> dict[str, Any]:
    """Return arguments for a checkpoint of any architecture, by its files."""
    facts = read_facts(folder)
    context = facts.context or _default_context(folder)
    return {
        **CHAT,
        **({} if context is None else {"max_model_len": min(context, LONGEST)}),
        # vLLM would take it in Mistral's own layout, of which nothing here was read
        **(TRANSFORMERS_LAYOUT if any(folder.glob(hub.SECOND_COPY)) else {}),
        # vLLM reads this scaling by another key, and would leave it out: off by 0.31 beyond the original context
        **({"hf_overrides": {"text_config": {"llama_4_scaling": facts.scaling}}} if facts.scaling else {}),
    }


def _default_context(folder: Path) -> int | None:
    """Return the longest sequence of a checkpoint whose files leave it to transformers' defaults."""
    from transformers import AutoConfig

    try:
        return int(AutoConfig.from_pretrained(folder).get_text_config().max_position_embeddings)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # vLLM will say what is wrong with it
        return None


def _memory(folder: Path, chosen: Mapping[str, Any], cpu: bool, share: float, gpu_bytes: int) -> dict[str, Any]:
    """Return the arguments that size an engine on a CPU, or on a part of a GPU. Raises ModelError without room."""
    description = read(folder)
    given = settings(chosen, description, None if cpu else gpu_bytes)
    held = footprint(description, given)
    if cpu:
        cache = int(chosen.get("kv_cache_memory_bytes") or memory.kv_bytes(held, given.requests))
        memory.check_memory(folder.name, held, cache)
        return {"kv_cache_memory_bytes": cache}
    part = float(chosen.get("gpu_memory_utilization", round(UTILIZATION * share, 4)))
    cache = int(chosen.get("kv_cache_memory_bytes") or part * gpu_bytes - held.fixed)
    if cache < held.cache(held.context):
        raise ModelError(
            f"Too little of the GPU for {folder.name}: {part:.0%} of {gpu_bytes / 1e9:.1f} GB, and it needs "
            f"{held.least / 1e9:.1f} GB ({held.weights / 1e9:.1f} of weights). `diptych plan` shows what fits.",
            code="out_of_memory",
        )
    return {"gpu_memory_utilization": part, "kv_cache_memory_bytes": cache}
