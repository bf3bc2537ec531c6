"""Find what vLLM compiles with on a GPU, and switch off what a pip install cannot compile (deployments/NOTES.md)."""

import os
import shutil
from pathlib import Path

CUDA_HOME = "/usr/local/cuda"
NEEDS_NVCC = {
    "VLLM_USE_DEEP_GEMM": "0",  # its kernels for FP8 checkpoints are compiled at the first step
    "VLLM_MOE_USE_DEEP_GEMM": "0",
}
"""Variables that switch off what vLLM would compile with nvcc without looking for one."""
FLASHINFER_FIRST = 10
"""The major compute capability (Blackwell's data-centre GPUs) on which vLLM prefers FlashInfer's attention."""


def nvcc() -> str | None:
    """Return the nvcc that vLLM, FlashInfer and DeepGEMM would call; None without one. Packages from pip have it off
    PATH, where none of them looks."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if not home:
        beside = shutil.which("nvcc")
        home = str(Path(beside).parents[1]) if beside else CUDA_HOME
    return shutil.which(str(Path(home, "bin", "nvcc")))


def can_compile_cuda() -> bool:
    """Return whether CUDA kernels can be compiled here, as `vllm.utils.flashinfer.has_flashinfer` asks."""
    return nvcc() is not None and shutil.which("ninja") is not None


def attention(capability: int) -> dict[str, str]:
    """Return the engine argument that keeps vLLM off FlashInfer's attention on a GPU of this major compute capability,
    where it could not be compiled; {} where vLLM's own choice needs no nvcc."""
    return {} if capability != FLASHINFER_FIRST or can_compile_cuda() else {"attention_backend": "FLASH_ATTN"}
