"""A vLLM plugin that computes Qwen3.5's gated delta nets in float32 on a processor.

vLLM 0.32 computes these layers on a CPU in bfloat16 alone: with any other type the engine ends at its first request. In
bfloat16 its log-probabilities are off by 0.13 to 0.45, as transformers' own are in bfloat16; here by 1e-5 (NOTES.md).
Nothing changes on a GPU, nor in bfloat16.
"""

import importlib

MODEL_TYPES = ("qwen3_5", "qwen3_5_moe", "minicpmv4_6")
"""Model types whose replies were compared with transformers'. Others with such layers are refused in float32."""


def register() -> None:
    """Register the plugin: the entry point `vllm.general_plugins`. It may be called several times."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        importlib.import_module("serve.engines.plugins.gated_delta_net_vllm")
