"""The parts of the prefix-LM plugin that stand inside vLLM 0.32: two attention backends and a scheduler.

Only vLLM imports this module, in the processes that run a model. Both backends are the stock ones but for the flags
that their metadata carry; for every other model they are the stock ones altogether.
"""

from typing import Any

from vllm.v1.attention.backend import AttentionCGSupport
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend, CPUAttentionMetadataBuilder
from vllm.v1.attention.backends.triton_attn import TritonAttentionBackend, TritonAttentionMetadataBuilder
from vllm.v1.core.sched.async_scheduler import AsyncScheduler

from serve.engines import prefix_lm


def flagged(vllm_config: Any, common: Any) -> Any:
    """The step's common metadata with `causal` per request, where a prefix LM has requests in prefill."""
    if not prefix_lm.concerns(vllm_config):
        return common
    # All on the CPU, so that a GPU is not waited for. The upper bound is exact for requests in prefill.
    starts = common.query_start_loc_cpu
    causal = prefix_lm.flags(common.is_prefilling, starts[1:] - starts[:-1], common.seq_lens_cpu_upper_bound)
    if causal is None:
        return common
    return common.replace(causal=causal.to(common.seq_lens.device, non_blocking=True))


class CpuBuilder(CPUAttentionMetadataBuilder):  # type: ignore[misc]
    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Any:
        return super().build(common_prefix_len, flagged(self.vllm_config, common_attn_metadata), fast_build)


class CpuBackend(CPUAttentionBackend):  # type: ignore[misc]
    @staticmethod
    def get_builder_cls() -> type[CpuBuilder]:
        return CpuBuilder


class TritonBuilder(TritonAttentionMetadataBuilder):  # type: ignore[misc]
    @classmethod
    def get_cudagraph_support(cls, vllm_config: Any, kv_cache_spec: Any) -> Any:
        """A captured graph would freeze `causal`, so only steps in which everyone speaks may be one whole graph."""
        if prefix_lm.concerns(vllm_config):
            return AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE
        return super().get_cudagraph_support(vllm_config, kv_cache_spec)

    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Any:
        return super().build(common_prefix_len, flagged(self.vllm_config, common_attn_metadata), fast_build)


class TritonBackend(TritonAttentionBackend):  # type: ignore[misc]
    @staticmethod
    def get_builder_cls() -> type[TritonBuilder]:
        return TritonBuilder


class PromptFirstScheduler(AsyncScheduler):  # type: ignore[misc]
    """Computes a preempted request's prompt in one step and what it had said in the next."""

    def _reserve_prefill_lookahead(self, request: Any, num_computed_tokens: int, num_new_tokens: int) -> int:
        # vLLM asks this for new, resumed and running requests alike, as the last word on how many tokens they get.
        new = super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens)
        return prefix_lm.within_prompt(request.num_prompt_tokens, num_computed_tokens, new)
