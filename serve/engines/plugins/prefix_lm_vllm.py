"""The parts of the prefix-LM plugin that run inside vLLM 0.32: two attention backends and a scheduler.

Only vLLM imports this module, in the processes that run a model. The backends differ from the stock ones in their
metadata, which has a request for each piece, and in a second kernel call in sliding layers; for other models they
behave as the stock ones.
"""

import copy
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from vllm.v1.attention.backend import AttentionCGSupport
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadataBuilder,
)
from vllm.v1.attention.backends.triton_attn import (
    TritonAttentionBackend,
    TritonAttentionImpl,
    TritonAttentionMetadataBuilder,
)
from vllm.v1.core.sched.async_scheduler import AsyncScheduler

from serve.engines.checkpoint_facts import Attention
from serve.engines.plugins import prefix_lm


@dataclass
class AttentionPart:
    """A part of a step's requests. tokens: indices of their tokens in the step. metadata: the stock metadata for them
    alone. prefill: whether they are in prefill."""

    tokens: Any
    metadata: Any
    prefill: bool


class Builder:
    """A mixin for both metadata builders, around the stock one."""

    vllm_config: Any
    window_size: int
    """Used by the CPU's builder only, which schedules its work by it."""

    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Any:
        common, stock, attention = common_attn_metadata, cast(Any, super()), prefix_lm.attention_of(self.vllm_config)
        if attention == "prompt":
            common = common.replace(mm_req_doc_ranges=None)  # vLLM's mask for the image, a subset of ours
        rows = self.rows(common, attention)
        if rows is None:
            return stock.build(common_prefix_len, common, fast_build)
        common = cut(common, rows)
        metadata = stock.build(common_prefix_len, common, fast_build)
        window = prefix_lm.window(self.vllm_config)
        if attention == "prompt" and window is not None and common.max_query_len > window:
            causal = torch.tensor([row.causal for row in rows])
            unbounded = copy.copy(self)
            unbounded.window_size = -1
            metadata.parts = [unbounded.part(common, ~causal, prefill=True)]
            if causal.any():
                metadata.parts.append(self.part(common, causal, prefill=False))
        return metadata

    def opens_pictures(self) -> bool:
        """Return whether pictures are cut out as spans; where not, vLLM's own mask opens them."""
        return False

    def rows(self, common: Any, attention: Attention) -> list[prefix_lm.Row] | None:
        """Return the step's requests, cut at their spans; None where it computes no token of a span."""
        prompts = attention == "prompt" and common.is_prefilling is not None and bool(common.is_prefilling.any())
        pictures = attention == "picture" and common.max_query_len > 1 and self.opens_pictures()
        if not (prompts or pictures):
            return None
        # All on the CPU, which avoids a synchronisation with the GPU. The upper bound is exact for requests in prefill.
        lengths = common.query_start_loc_cpu.diff().tolist(), common.seq_lens_cpu_upper_bound.tolist()
        if prompts:
            return prefix_lm.cut_at_spans(prefix_lm.prompt_spans(common.is_prefilling.tolist(), *lengths), *lengths)
        ranges = common.mm_req_doc_ranges or {}
        spans = [[(first, last + 1) for first, last in ranges.get(at, ())] for at in range(common.num_reqs)]
        return prefix_lm.cut_at_spans(spans, *lengths)

    def part(self, common: Any, chosen: Any, *, prefill: bool) -> AttentionPart:
        """Build the metadata of the chosen requests (bool [requests]) as if they were alone in the step."""
        device = common.seq_lens.device
        lengths = common.query_start_loc_cpu.diff()
        tokens = chosen.repeat_interleave(lengths).nonzero()[:, 0].to(device)
        rows = chosen.nonzero()[:, 0].to(device)
        starts = torch.nn.functional.pad(lengths[chosen].cumsum(0), (1, 0)).int()
        alone = common.replace(
            query_start_loc=starts.to(device),
            query_start_loc_cpu=starts,
            seq_lens=common.seq_lens[rows],
            num_reqs=len(rows),
            num_actual_tokens=len(tokens),
            max_query_len=int(lengths[chosen].max()),
            block_table_tensor=common.block_table_tensor[rows],
            slot_mapping=common.slot_mapping[tokens],
            causal=not prefill,
        )
        return AttentionPart(tokens, cast(Any, super()).build(0, alone), prefill)


def cut(common: Any, rows: list[prefix_lm.Row]) -> Any:
    """Return a step's metadata with each row as a request of its own. Tokens, and their slots, keep their order."""

    def tensor(values: Iterable[int]) -> Any:
        return torch.tensor(list(values), dtype=torch.int32)

    device = common.seq_lens.device
    requests = tensor(row.request for row in rows).to(device, non_blocking=True)
    starts = tensor(itertools.accumulate((row.tokens for row in rows), initial=0))
    return common.replace(
        query_start_loc=starts.to(device, non_blocking=True),
        query_start_loc_cpu=starts,
        seq_lens=common.seq_lens[requests] - tensor(row.after for row in rows).to(device, non_blocking=True),
        num_reqs=len(rows),
        max_query_len=max(row.tokens for row in rows),
        block_table_tensor=common.block_table_tensor[requests],
        causal=tensor(row.causal for row in rows).to(device, non_blocking=True),
    )


class Impl:
    """A mixin for attention layers: a sliding layer calls its kernel twice where a prompt is longer than its window,
    once for requests in prefill without the window and once for requests in decoding with it.

    The stock kernels have one window for a whole step, and make it two-sided where attention is not causal.
    """

    sliding_window: Any
    unbounded: Any

    def forward(
        self,
        layer: Any,
        query: Any,
        key: Any,
        value: Any,
        kv_cache: Any,
        attn_metadata: Any,
        output: Any,
        output_scale: Any = None,
        output_block_scale: Any = None,
    ) -> Any:
        parts = getattr(attn_metadata, "parts", None)
        scales = output_scale, output_block_scale
        if parts is None or self.sliding_window == self.unbounded:
            return cast(Any, super()).forward(layer, query, key, value, kv_cache, attn_metadata, output, *scales)
        for part in parts:
            layer_copy = copy.copy(self)
            if part.prefill:
                layer_copy.sliding_window = self.unbounded
            part_output = output.new_empty((len(part.tokens), *output.shape[1:]))
            # Keys and values of the whole step are in the cache by now: the kernels read them there.
            cast(Any, super(Impl, layer_copy)).forward(
                layer, query[part.tokens], key, value, kv_cache, part.metadata, part_output, *scales
            )
            output[part.tokens] = part_output
        return output


class CpuBuilder(Builder, CPUAttentionMetadataBuilder):  # type: ignore[misc]
    def opens_pictures(self) -> bool:
        """Return whether it builds for layers that open pictures: of Gemma 4's those with a window."""
        return self.window_size > 0 or not self.vllm_config.model_config.hf_config.model_type.startswith("gemma4")


class CpuImpl(Impl, CPUAttentionBackendImpl):  # type: ignore[misc]
    unbounded = -1


class CpuBackend(CPUAttentionBackend):  # type: ignore[misc]
    @staticmethod
    def get_builder_cls() -> type[CpuBuilder]:
        return CpuBuilder

    @staticmethod
    def get_impl_cls() -> type[CpuImpl]:
        return CpuImpl


class TritonBuilder(Builder, TritonAttentionMetadataBuilder):  # type: ignore[misc]
    @classmethod
    def get_cudagraph_support(cls, vllm_config: Any, kv_cache_spec: Any) -> Any:
        """Allow whole graphs only for steps that are all decoding, since a captured graph would freeze `causal`."""
        if prefix_lm.attention_of(vllm_config) == "prompt":
            return AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE
        return super().get_cudagraph_support(vllm_config, kv_cache_spec)


class TritonImpl(Impl, TritonAttentionImpl):  # type: ignore[misc]
    unbounded = (-1, -1)


class TritonBackend(TritonAttentionBackend):  # type: ignore[misc]
    @staticmethod
    def get_builder_cls() -> type[TritonBuilder]:
        return TritonBuilder

    @staticmethod
    def get_impl_cls() -> type[TritonImpl]:
        return TritonImpl


class PrefixLmScheduler(AsyncScheduler):  # type: ignore[misc]
    """A scheduler that computes each span in one step, and PaliGemma's prompt in a step without generated tokens."""

    def _reserve_prefill_lookahead(self, request: Any, num_computed_tokens: int, num_new_tokens: int) -> int:
        # vLLM calls this last for new, resumed and running requests, to decide how many tokens they get.
        new = int(super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens))
        if num_computed_tokens >= request.num_prompt_tokens:
            return new
        if prefix_lm.attention_of(self.vllm_config) == "prompt":
            return prefix_lm.within_prompt(request.num_prompt_tokens, num_computed_tokens, new)
        seen = (feature.mm_position for feature in request.mm_features if feature.modality != "audio")
        spans = ((first, last + 1) for position in seen for first, last in position.extract_embeds_range())
        return prefix_lm.before_cut(spans, num_computed_tokens, new)
