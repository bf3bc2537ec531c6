"""A vLLM plugin that runs prefix language models as they were trained: parts of their prompts see themselves whole.

Such a part is a span: its tokens all attend to each other, and to all before it. Every other token is causal.

- PaliGemma (arXiv 2407.07726, section 3.1) has one, from the prompt's start to its end. vLLM makes it causal on a CPU,
  and on a GPU opens the image alone.
- Gemma 3 has one for each picture, in every layer; Gemma 4 where its configuration says so (`attention_of`), and in
  sliding layers alone. transformers 5.19 takes the sliding window off their left side only, so that a picture no longer
  than the window is seen whole. vLLM does the same on a GPU, and makes pictures causal on a CPU, without a word.

The plugin hands the stock kernels each request cut at its spans, every piece as a request of its own with a flag of its
own: a span is not causal, what stands between spans is. That is exact where a step holds a whole span:

- of a picture, the scheduler sees to it (`PrefixLmScheduler`), and a window shorter than a picture is refused, since
  the kernel's window is two-sided for what is not causal. Chunked prefill and prefix caching may be on: what a
  cache has of a picture was computed with all of it.
- of a whole prompt, chunked prefill, long-prefill splitting and prefix caching are off, and the scheduler never puts
  prompt and reply into one step: a preempted request's own tokens would be taken for its prompt. Sliding layers
  (Gemma 2's) have no window within the prompt: where one is longer, the kernel is called twice.

A configuration that breaks one of these is refused with a message that names it (`refuse`), and every step is checked
again (`cut_at_spans`, `prompt_spans`). On a GPU the pictures of Gemma are vLLM's own work, but for the scheduler, since
vLLM's `disable_chunked_mm_input` still cuts a picture with which a step begins. vLLM calls `register` in each of its
processes, by the entry point `vllm.general_plugins`. Other models are unchanged. The measurements are in NOTES.md.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from serve.engines.checkpoint_facts import Attention

PROMPTS = ("PaliGemmaForConditionalGeneration",)
PICTURES = {"gemma3": "Gemma3ForConditionalGeneration", "gemma4": "Gemma4ForConditionalGeneration"}
"""Architectures whose pictures are computed on a CPU as transformers does, by model type."""

SCHEDULER = "serve.engines.plugins.prefix_lm_vllm.PrefixLmScheduler"
SAFE_ARGS: Mapping[Attention, Mapping[str, Any]] = {
    "causal": {},
    "picture": {
        "disable_chunked_mm_input": True,  # makes vLLM refuse steps that are too small for a picture
        "long_prefill_token_threshold": 0,
        "scheduler_cls": SCHEDULER,
    },
    "prompt": {
        "enable_chunked_prefill": False,
        "enable_prefix_caching": False,
        "long_prefill_token_threshold": 0,
        "scheduler_cls": SCHEDULER,
    },
}
"""vLLM engine arguments without which answers would be wrong, by which tokens see later ones."""

GPU_ARGS: dict[str, Any] = {"attention_backend": "TRITON_ATTN"}
"""Further arguments for PaliGemma on a GPU: of its attention kernels only Triton's takes one flag per request."""

ENVIRONMENT = {"VLLM_USE_V2_MODEL_RUNNER": "0"}
"""For PaliGemma: vLLM's second model runner counts the generated tokens of a preempted request as prompt."""

Spans = Sequence[tuple[int, int]]
"""The first position of each span of a request, and the one after its last."""


class SpanCut(RuntimeError):
    """An error: a span would be computed in parts, which gives wrong replies."""


class Row(NamedTuple):
    """A piece of a request's step. request: its index in the step. tokens: the piece's. after: the request's tokens of
    the step after it. causal: False for a span."""

    request: int
    tokens: int
    after: int
    causal: bool


def register() -> None:
    """Register the plugin: the entry point `vllm.general_plugins`. It may be called several times."""
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    def refusing(stock: Any) -> Any:
        class Refuse(stock):  # type: ignore[misc]
            @staticmethod
            def verify_and_update_config(vllm_config: Any) -> None:
                stock.verify_and_update_config(vllm_config)
                refuse(vllm_config, cpu=current_platform.is_cpu())

        return Refuse

    register_backend(AttentionBackendEnum.CPU_ATTN, "serve.engines.plugins.prefix_lm_vllm.CpuBackend")
    register_backend(AttentionBackendEnum.TRITON_ATTN, "serve.engines.plugins.prefix_lm_vllm.TritonBackend")
    for architecture in (*PROMPTS, *PICTURES.values()):
        stock = MODELS_CONFIG_MAP.get(architecture, VerifyAndUpdateConfig)
        if stock.__module__ != __name__:
            MODELS_CONFIG_MAP[architecture] = refusing(stock)


def attention_of(vllm_config: Any) -> Attention:
    """Return which tokens of this vLLM configuration's model see later ones."""
    model = vllm_config.model_config
    if any(name in PROMPTS for name in model.architectures):
        return "prompt"
    return "picture" if model.is_mm_prefix_lm else "causal"


def refuse(vllm_config: Any, *, cpu: bool) -> None:
    """Raise ValueError naming every argument with which a prefix language model would answer wrongly."""
    scheduler, cache, model = vllm_config.scheduler_config, vllm_config.cache_config, vllm_config.model_config
    attention, wrong = attention_of(vllm_config), []
    if attention == "causal" or (attention == "picture" and not cpu):
        return
    if scheduler.long_prefill_token_threshold:
        wrong.append("long_prefill_token_threshold must be 0 (long prompts would be cut)")
    if scheduler.scheduler_cls != SCHEDULER:
        wrong.append(f"scheduler_cls must be {SCHEDULER} (a preempted reply would see its future, a picture be cut)")
    if attention == "picture":
        if not scheduler.disable_chunked_mm_input:
            wrong.append("disable_chunked_mm_input must be True (a picture might not fit a step)")
        if (sliding := window(vllm_config)) is not None and (longest := longest_picture(model)) > sliding:
            wrong.append(
                f"a picture must have at most {sliding} tokens, the window of its sliding layers, and has {longest}: "
                "lower max_soft_tokens in mm_processor_kwargs"
            )
    else:
        if scheduler.enable_chunked_prefill:
            wrong.append("enable_chunked_prefill must be False (a prompt would be computed in parts)")
        if cache.enable_prefix_caching:
            wrong.append("enable_prefix_caching must be False (a prompt's start depends on its end)")
        if scheduler.max_num_batched_tokens < model.max_model_len:
            wrong.append("max_num_batched_tokens must be at least max_model_len (a long prompt would not fit a step)")
        if vllm_config.use_v2_model_runner:
            wrong.append("VLLM_USE_V2_MODEL_RUNNER must be 0 in the environment (it takes a reply for a prompt)")
    if wrong:
        raise ValueError("A prefix language model would answer wrongly: " + "; ".join(wrong) + ".")


def window(vllm_config: Any) -> int | None:
    """Return the window of the sliding layers in tokens; None where there are none."""
    return getattr(vllm_config.model_config.hf_text_config, "sliding_window", None)


def longest_picture(model_config: Any) -> int:
    """Return the most tokens of a picture: Gemma 3 has as many for each, Gemma 4 as an argument or its files say."""
    config, given = model_config.hf_config, model_config.multimodal_config.mm_processor_kwargs or {}
    chosen = given.get("max_soft_tokens") or given.get("images_kwargs", {}).get("max_soft_tokens")
    of_files = getattr(config, "mm_tokens_per_image", None) or config.vision_config.default_output_length
    return int(chosen or of_files)


def prompt_spans(prefilling: Sequence[bool], query_lens: Sequence[int], seq_lens: Sequence[int]) -> list[Spans]:
    """Return the spans of each request of a step of PaliGemma's: the prompt of one in prefill.

    query_lens, seq_lens: tokens of this step and up to its end. Raises SpanCut when a request in prefill has tokens of
    earlier steps or out of a cache.
    """
    cut = sum(new and end > query for new, query, end in zip(prefilling, query_lens, seq_lens, strict=True))
    if cut:
        raise SpanCut(
            f"{cut} of {len(query_lens)} requests continue a prompt that was begun elsewhere: "
            "a prefix language model needs its whole prompt in one step."
        )
    return [[(0, end)] if new else [] for new, end in zip(prefilling, seq_lens, strict=True)]


def cut_at_spans(spans: Sequence[Spans], query_lens: Sequence[int], seq_lens: Sequence[int]) -> list[Row] | None:
    """Cut each request of a step at its spans; return None where the step computes no token of a span.

    A span that an earlier step or a cache has in part is computed to its end. Raises SpanCut where a span would go on
    after the step.
    """
    cut = []
    for request, (query, end) in enumerate(zip(query_lens, seq_lens, strict=True)):
        at = end - query
        for first, last in sorted(spans[request]):
            if at < end and at < last and first < end:
                if last > end:
                    raise SpanCut(f"{end - max(at, first)} tokens of a span of {last - first} would be computed alone.")
                if first > at:
                    cut.append(Row(request, first - at, end - first, causal=True))
                at = max(at, first)
                cut.append(Row(request, last - at, end - last, causal=False))
                at = last
        if at < end or query == 0:
            cut.append(Row(request, end - at, 0, causal=True))
    return None if all(row.causal for row in cut) else cut


def within_prompt(prompt: int, computed: int, new: int) -> int:
    """Return how many of `new` tokens to compute in this step: none beyond the prompt's end where it computes the
    prompt.

    All are numbers of tokens; computed: those of earlier steps. Raises SpanCut when fewer than the whole prompt would
    be computed.
    """
    if new == 0 or computed >= prompt:
        return new
    if computed > 0 or new < prompt:
        raise SpanCut(f"{new} tokens of a prompt of {prompt} would be computed alone, {computed} being there.")
    return prompt


def before_cut(spans: Iterable[tuple[int, int]], computed: int, new: int) -> int:
    """Return how many of `new` tokens to compute in this step, so that it ends within no span.

    0: the request waits for a step with more room. computed: tokens of earlier steps, or out of a cache.
    """
    end = computed + new
    return next((max(0, first - computed) for first, last in spans if first < end < last), new)
