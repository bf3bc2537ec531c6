"""vLLM's own gates, on a GPU that is pretended: which of its kernels it would compile with nvcc, with our settings."""

import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from serve.engines.vllm import compilers
from serve.engines.vllm.arguments import environment
from serve.engines.vllm.torchvision import repair

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # importing vLLM takes seconds

OURS = ("VLLM_USE_FLASHINFER_SAMPLER", *compilers.NEEDS_NVCC)


class Anything(types.ModuleType):
    """A package whose every name is there: FlashInfer is not installed with vLLM's CPU build."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock(name=name)


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend the compiled kernels that vLLM's build for GPUs has: nothing here calls them."""
    repair()  # before vLLM is imported, as an engine does

    for name in ("vllm._C_stable_libtorch", "vllm._C", "vllm._moe_C_stable_libtorch"):
        if name not in sys.modules:
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))


@pytest.fixture
def hopper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Pretend an H100 with vLLM's packages from pip and no CUDA toolkit; yield its platform."""
    import vllm.platforms
    from vllm.platforms.cuda import NonNvmlCudaPlatform
    from vllm.platforms.interface import DeviceCapability
    from vllm.utils import deep_gemm, flashinfer
    from vllm.v1.sample.ops import topk_topp_sampler

    class Hopper(NonNvmlCudaPlatform):  # type: ignore[misc]
        @classmethod
        def get_device_capability(cls, device_id: int = 0) -> DeviceCapability:
            return DeviceCapability(9, 0)

        @classmethod
        def num_compute_units(cls, device_id: int = 0) -> int:
            return 132

    for name in OURS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setattr(flashinfer, "_DEFAULT_CUDA_HOME", str(tmp_path / "none"))
    monkeypatch.setattr(compilers, "CUDA_HOME", str(tmp_path / "none"))
    for module in ("flashinfer", "flashinfer.jit", "flashinfer.jit.core", "flashinfer.decode", "flashinfer.prefill",
                   "flashinfer.utils", "flashinfer.cascade", "flashinfer.compilation_context"):  # fmt: skip
        if module not in sys.modules:
            package = Anything(module)
            package.__spec__ = MagicMock()
            monkeypatch.setitem(sys.modules, module, package)
    platform = Hopper()
    monkeypatch.setattr(vllm.platforms, "_current_platform", platform)
    for module in (topk_topp_sampler, deep_gemm, flashinfer):
        monkeypatch.setattr(module, "current_platform", platform)
    monkeypatch.setattr(topk_topp_sampler.torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(deep_gemm, "has_deep_gemm", lambda: True)
    backend = MagicMock()
    backend.FlashInferBackend.supports_compute_capability.return_value = True
    monkeypatch.setitem(sys.modules, "vllm.v1.attention.backends.flashinfer", backend)
    yield platform
    for gate in (deep_gemm.is_deep_gemm_supported, flashinfer.has_flashinfer, flashinfer.has_flashinfer_cubin):
        gate.cache_clear()


def test_sampler_would_be_compiled_by_default_and_is_not_with_our_environment(
    hopper: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.v1.sample.ops.topk_topp_sampler import flashinfer_sampler_supported

    assert flashinfer_sampler_supported()  # no nvcc is here, and nobody looked for it
    monkeypatch.setattr(os, "environ", dict(os.environ))
    environment(is_prefix_lm=False)
    assert not flashinfer_sampler_supported()


def test_deep_gemm_would_be_used_by_default_and_is_not_with_our_environment(
    hopper: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.utils.deep_gemm import is_deep_gemm_supported

    assert is_deep_gemm_supported()
    is_deep_gemm_supported.cache_clear()
    monkeypatch.setattr(os, "environ", dict(os.environ))
    environment(is_prefix_lm=False)
    assert not is_deep_gemm_supported()


def test_rest_of_flashinfer_looks_for_nvcc_itself_as_we_do(hopper: Any, tmp_path: Path) -> None:
    from vllm.utils import flashinfer

    assert not flashinfer.has_flashinfer() and not compilers.can_compile_cuda()
    for name in ("bin/nvcc", "nvcc", "ninja"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    os.environ["CUDA_HOME"] = str(tmp_path)
    flashinfer.has_flashinfer.cache_clear()
    assert compilers.nvcc() == flashinfer._flashinfer_nvcc_path() == str(tmp_path / "bin" / "nvcc")
    assert compilers.can_compile_cuda()
    del os.environ["CUDA_HOME"]


@pytest.mark.parametrize(
    ("capability", "first"), [((8, 0), "FLASH_ATTN"), ((9, 0), "FLASH_ATTN"), ((12, 0), "FLASH_ATTN")]
)
def test_attention_that_vllm_prefers_needs_no_nvcc(capability: tuple[int, int], first: str) -> None:
    assert preferred(capability) == first and compilers.attention(capability[0]) == {}


def test_attention_that_vllm_prefers_on_blackwell_is_flashinfers() -> None:
    assert preferred((compilers.FLASHINFER_FIRST, 0)) == "FLASHINFER"


def preferred(capability: tuple[int, int]) -> str:
    from vllm.platforms.cuda import _get_backend_priorities
    from vllm.platforms.interface import DeviceCapability

    return str(_get_backend_priorities(use_mla=False, device_capability=DeviceCapability(*capability))[0].name)
