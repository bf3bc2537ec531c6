"""A vLLM plugin that runs prefix language models as they were trained: with full attention within image and prompt.

PaliGemma (arXiv 2407.07726, section 3.1) has no mask within image and prompt, and a causal mask in the reply. vLLM runs
the whole sequence causally on a CPU, and on a GPU lifts the mask for the image only: both give wrong answers without an
error. The plugin passes the stock attention kernels one flag per request: a request in prefill is not causal, one in
decoding is. Sliding layers (Gemma 2's) have no window within the prefix: where a prompt is longer than the window, the
kernel is called twice. That is exact as long as a prefill step holds a request's whole prompt and nothing else, so

- chunked prefill, long-prefill splitting and prefix caching are off: with each, a step would hold a part of a prompt;
- the scheduler never puts prompt and reply into one step. A preempted request is recomputed from its prompt *and* the
  tokens it has generated: in one step these tokens would attend to later ones (scheduler in `prefix_lm_vllm.py`).

A configuration that breaks one of these is refused with a message that names it (`refuse`), and every step is checked
again (`flags`). vLLM calls `register` in each of its processes, by the entry point `vllm.general_plugins`. Only
families in ARCHITECTURES change. The measurements are in NOTES.md.
"""

from typing import Any

ARCHITECTURES = ("PaliGemmaForConditionalGeneration",)

SCHEDULER = "serve.engines.plugins.prefix_lm_vllm.PromptFirstScheduler"
SAFE_ARGS: dict[str, Any] = {
    "enable_chunked_prefill": False,
    "enable_prefix_caching": False,
    "long_prefill_token_threshold": 0,
    "scheduler_cls": SCHEDULER,
}
"""vLLM engine arguments without which a prefix LM's answers would be wrong."""

GPU_ARGS: dict[str, Any] = {"attention_backend": "TRITON_ATTN"}
"""Further arguments on a GPU: of its attention kernels only Triton's takes one flag per request."""

ENVIRONMENT = {"VLLM_USE_V2_MODEL_RUNNER": "0"}
"""vLLM's second model runner counts the generated tokens of a preempted request as prompt."""


class PromptCut(RuntimeError):
    """An error: a prefix LM's prompt would be computed in parts, which gives wrong replies."""


def register() -> None:
    """Register the plugin: the entry point `vllm.general_plugins`. It may be called several times."""
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    class Refuse(VerifyAndUpdateConfig):  # type: ignore[misc]
        @staticmethod
        def verify_and_update_config(vllm_config: Any) -> None:
            refuse(vllm_config)

    register_backend(AttentionBackendEnum.CPU_ATTN, "serve.engines.plugins.prefix_lm_vllm.CpuBackend")
    register_backend(AttentionBackendEnum.TRITON_ATTN, "serve.engines.plugins.prefix_lm_vllm.TritonBackend")
    for architecture in ARCHITECTURES:
        MODELS_CONFIG_MAP[architecture] = Refuse


def concerns(vllm_config: Any) -> bool:
    """Return whether the model of this vLLM configuration is a prefix LM."""
    return any(name in ARCHITECTURES for name in vllm_config.model_config.architectures)


def refuse(vllm_config: Any) -> None:
    """Raise ValueError naming every argument with which a prefix LM would answer wrongly."""
    scheduler, cache, model = vllm_config.scheduler_config, vllm_config.cache_config, vllm_config.model_config
    wrong = []
    if scheduler.enable_chunked_prefill:
        wrong.append("enable_chunked_prefill must be False (a prompt would be computed in parts)")
    if cache.enable_prefix_caching:
        wrong.append("enable_prefix_caching must be False (a prompt's start depends on its end)")
    if scheduler.long_prefill_token_threshold:
        wrong.append("long_prefill_token_threshold must be 0 (long prompts would be cut)")
    if scheduler.max_num_batched_tokens < model.max_model_len:
        wrong.append("max_num_batched_tokens must be at least max_model_len (a long prompt would not fit a step)")
    if scheduler.scheduler_cls != SCHEDULER:
        wrong.append(f"scheduler_cls must be {SCHEDULER} (a preempted reply would see its future)")
    if vllm_config.use_v2_model_runner:
        wrong.append("VLLM_USE_V2_MODEL_RUNNER must be 0 in the environment (it takes a reply for a prompt)")
    if wrong:
        raise ValueError("A prefix language model would answer wrongly: " + "; ".join(wrong) + ".")


def window(vllm_config: Any) -> int | None:
    """Return the window of the sliding layers (Gemma 2's) in tokens; None where there are none."""
    return getattr(vllm_config.model_config.hf_text_config, "sliding_window", None)


def flags(prefilling: Any, query_lens: Any, seq_lens: Any) -> Any:
    """Return one flag per request for the kernel, int [requests]: 1 causal, 0 not. None where all are causal.

    prefilling: bool [requests]; query_lens, seq_lens: int [requests], tokens of this step and up to its end. Raises
    PromptCut when a request in prefill has tokens of earlier steps or out of a cache.
    """
    if prefilling is None or not bool(prefilling.any()):
        return None
    cut = prefilling & (seq_lens > query_lens)
    if bool(cut.any()):
        raise PromptCut(
            f"{int(cut.sum())} of {len(cut)} requests continue a prompt that was begun elsewhere: "
            "a prefix language model needs its whole prompt in one step."
        )
    return (~prefilling).int()


def within_prompt(prompt: int, computed: int, new: int) -> int:
    """Return how many of `new` tokens to compute in this step: none beyond the prompt's end where it computes the
    prompt.

    All are numbers of tokens; computed: those of earlier steps. Raises PromptCut when fewer than the whole prompt would
    be computed.
    """
    if new == 0 or computed >= prompt:
        return new
    if computed > 0 or new < prompt:
        raise PromptCut(f"{new} tokens of a prompt of {prompt} would be computed alone, {computed} being there.")
    return prompt
