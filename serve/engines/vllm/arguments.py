"""What vLLM is started with: environment variables, and engine arguments from four sources in one order."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from serve.engines import adapters as loras
from serve.engines import module_names
from serve.engines.plugins import prefix_lm
from serve.engines.vllm import memory
from serve.engines.vllm.torchvision import repair
from serve.errors import ModelError

ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",  # its warnings are about choices that are made below, on purpose
    "TRANSFORMERS_VERBOSITY": "error",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",  # vLLM would otherwise report to its makers, which also waits for a network
    "TOKENIZERS_PARALLELISM": "false",  # its threads quarrel with the engine for the cores
    # Idle OpenMP threads spin by default: on two cores, two engines and a front starve each other.
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
}

COMMON: dict[str, Any] = {
    "enable_log_requests": False,
    "disable_log_stats": True,  # vLLM counts in each step for metrics that nobody scrapes inside a replica
    "limit_mm_per_prompt": {"image": 1},
    "scheduling_policy": "priority",  # Prompt.batch waits for all others; among equals, first come, first served
    "structured_outputs_config": {
        "backend": "xgrammar",
        "disable_any_whitespace": True,
    },  # or a weak model says only " "
    "use_tqdm_on_load": False,
}

GPU: dict[str, Any] = {
    # Prepared pictures kept for the next question about them, in main memory: 1500 of LLaVA-1.5's, 300 of NeXT's.
    "mm_processor_cache_gb": 2,
}

CPU: dict[str, Any] = {
    "mm_processor_cache_gb": 0.25,  # the same on a laptop; vLLM's default is 4
    "dtype": "float32",  # without AVX512 bf16 a bf16 product takes thirty times as long
    "enforce_eager": True,  # compiling costs half a minute at each start
    "skip_mm_profiling": True,  # the KV cache is sized below, so a dummy picture teaches nothing
    "max_num_seqs": 64,
    # As a class and not as "uni": vLLM replaces that word by "mp" on CPU, a second process to import everything in.
    "distributed_executor_backend": "vllm.v1.executor.uniproc_executor.UniProcExecutor",
}


def environment(is_prefix_lm: bool) -> None:
    """Set what must be set before vLLM is imported; what the operator has set stays."""
    repair()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if is_prefix_lm:
        os.environ.update(prefix_lm.ENVIRONMENT)


def arguments(
    folder: Path,
    family_args: Mapping[str, Any],
    engine_args: Mapping[str, Any],
    *,
    is_prefix_lm: bool,
    cpu: bool,
    adapters: Sequence[loras.Fitted] = (),
) -> dict[str, Any]:
    """Return AsyncEngineArgs' keyword arguments: our defaults, then the family's, then the deployment's, then safety.

    family_args: what the model dictates; engine_args: the deployment's `engine` in YAML; adapters: those that the
    engine holds. Raises ModelError when one sets an argument that a prefix LM needs otherwise, or when the memory
    that is free cannot hold the model.
    """
    chosen = {**COMMON, **(CPU if cpu else GPU), **family_args, **engine_args, **loras.arguments(adapters, cpu=cpu)}
    if any(adapter.newer for adapter in adapters) or module_names.any_newer(folder):
        chosen.setdefault("worker_extension_cls", module_names.EXTENSION)
    if cpu and chosen.get("tensor_parallel_size", 1) > 1 and "distributed_executor_backend" not in engine_args:
        chosen["distributed_executor_backend"] = "mp"
    if is_prefix_lm:
        safe = {**prefix_lm.SAFE_ARGS, **({} if cpu else prefix_lm.GPU_ARGS)}
        for name, value in safe.items():
            if name in chosen and chosen[name] != value:
                raise ModelError(
                    f"{name} must stay {value!r} for a prefix language model: its answers would be wrong.",
                    code="unsafe_argument",
                )
        chosen.update(safe)
    if cpu and "kv_cache_memory_bytes" not in chosen:
        chosen["kv_cache_memory_bytes"] = memory.kv_bytes(folder, chosen)
    if cpu:
        memory.check(folder, chosen)
    return {**chosen, "model": str(folder)}
