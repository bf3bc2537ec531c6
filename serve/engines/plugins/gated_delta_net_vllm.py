"""The part of the plugin that runs inside vLLM 0.32: importing this module puts `attend` in the place of vLLM's own."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.mamba.ops.cpu import gdn_attention
from vllm.utils.torch_utils import LayerNameType

stock: Callable[..., None] = gdn_attention.cpu_gdn_attention_core


def attend(
    mixed_qkv: torch.Tensor,
    b: torch.Tensor,
    a: torch.Tensor,
    core_attn_out: torch.Tensor,
    layer_name: LayerNameType,
) -> None:
    """Compute a layer's outputs for the tokens of a step into `core_attn_out`, as vLLM's function of this signature.

    mixed_qkv: [tokens, channels]; a, b: [tokens, heads]; core_attn_out: [tokens, heads, width]. The tokens of requests
    that generate come first, one each; then those of each prompt, or of a part of it.
    """
    context = get_forward_context()
    layer = context.no_compile_layers[gdn_attention._resolve_layer_name(layer_name)]
    if mixed_qkv.dtype != torch.float32 or context.attn_metadata is None:
        stock(mixed_qkv, b, a, core_attn_out, layer_name)
        return
    step = context.attn_metadata[layer.prefix]
    if step.num_actual_tokens == 0:
        return
    if step.spec_sequence_masks is not None:
        raise NotImplementedError("Speculative decoding of gated delta nets in float32 on a processor.")
    slots, starts = step.non_spec_state_indices_tensor.long(), step.non_spec_query_start_loc.tolist()
    if (count := step.num_decodes) > 0:
        new = mixed_qkv[:count, None], a[:count, None], b[:count, None]
        core_attn_out[:count] = _advance(layer, *new, slots[:count], torch.ones(count, dtype=torch.bool))[:, 0]
    for request in range(count, count + step.num_prefills):
        tokens, row = slice(starts[request], starts[request + 1]), slice(request, request + 1)
        new = mixed_qkv[None, tokens], a[None, tokens], b[None, tokens]
        core_attn_out[tokens] = _advance(layer, *new, slots[row], step.has_initial_state[row])[0]


def _advance(
    layer: Any, mixed_qkv: torch.Tensor, a: torch.Tensor, b: torch.Tensor, slots: torch.Tensor, kept: torch.Tensor
) -> Any:
    """Compute the next tokens of some requests, and move their states on.

    mixed_qkv: [requests, tokens, channels]; a, b: [requests, tokens, heads]; slots: [requests], where their states are;
    kept: [requests], whether they have states from earlier steps. Returns [requests, tokens, heads, width].
    """
    from transformers.models.qwen3_5.modeling_qwen3_5 import (
        torch_chunk_gated_delta_rule,
        torch_recurrent_gated_delta_rule,
    )

    requests, tokens, channels = mixed_qkv.shape
    mixed = _convolved(layer, mixed_qkv.transpose(1, 2), slots, kept).transpose(1, 2)
    query, key, value = (
        part.reshape(requests, tokens, *part.shape[-2:])
        for part in layer.rearrange_mixed_qkv(mixed.reshape(requests * tokens, channels))
    )
    shared = value.shape[2] // query.shape[2]
    states = layer.kv_cache[1]
    states = states.view(len(states), states.shape[1], query.shape[3], value.shape[3])
    decay = -layer.A_log.float().exp() * F.softplus(a.float() + layer.dt_bias.float())
    rule = torch_recurrent_gated_delta_rule if tokens == 1 else torch_chunk_gated_delta_rule
    output, after = rule(
        query.repeat_interleave(shared, 2),
        key.repeat_interleave(shared, 2),
        value,
        g=decay,
        beta=b.float().sigmoid(),
        initial_state=states[slots].masked_fill(~kept[:, None, None, None], 0),
        output_final_state=True,
        use_qk_l2norm_in_kernel=True,
    )
    states[slots] = after
    return output


def _convolved(layer: Any, inputs: torch.Tensor, slots: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Convolve inputs [requests, channels, tokens] along the tokens, and keep the last ones for the next step."""
    weight = gdn_attention._unpacked_conv_weight(layer)[:, None]
    earlier = gdn_attention._conv_buffer_view(layer)
    inputs = torch.cat([earlier[slots].masked_fill(~kept[:, None, None], 0), inputs], -1)
    earlier[slots] = inputs[..., -earlier.shape[-1] :]
    return F.silu(F.conv1d(inputs, weight, layer.conv1d.bias, groups=len(weight)))


gdn_attention.cpu_gdn_attention_core = attend  # before the first layer of such a kind is made
