"""Reasons why vLLM would serve a checkpoint wrongly, or not at all, known from its files: nothing is loaded for them.

Each is a sentence. What vLLM 0.32 was measured to do with each kind of checkpoint stands in ../NOTES.md.
"""

from collections.abc import Mapping
from typing import Any

from serve.engines.checkpoint_facts import CheckpointFacts
from serve.engines.plugins import gated_delta_net, prefix_lm

WRONG_IN_VLLM = {
    "ovis2": "vLLM 0.32 has no class for it, and transformers' own code in vLLM leaves out its picture markers",
    "deepseek_ocr2": "vLLM 0.32 cannot read it in transformers' layout: take the repository with the maker's own files",
    "kimi_k25": "vLLM 0.32 cannot read it in transformers' layout: take the repository with the maker's own files",
    "gemma4_unified": (
        "vLLM 0.32 lets the tokens of a picture see each other in sliding layers alone, and transformers 5.19 in all "
        "or in those, by the way it is called: which of both its weights were trained with is open"
    ),
    "phi4_multimodal": "vLLM 0.32 reads it as a model without pictures in transformers' layout: take the maker's own",
}
"""Model types that start and answer wrongly, or die at their first picture, measured against transformers."""
FALLBACKS = ("blip-2", "deepseek_ocr", "deepseek_vl_v2", "minicpmv", "minicpmv4_6", "minicpmv4_7", "unlimited_ocr")
"""Model types for which vLLM has a chat template of its own."""
ON_CPU = ("awq", "gptq", "compressed-tensors", "inc")
"""Kinds of quantised weights for which vLLM 0.32 has kernels on a processor. FP8 needs AMX there."""
FLOAT32 = ("float32", "float")


def why_refused(
    facts: CheckpointFacts,
    chosen: Mapping[str, Any],
    *,
    cpu: bool,
    template: bool = False,
    native: bool | None = None,
) -> str | None:
    """Return why this checkpoint cannot be served faithfully; None where nothing in its files speaks against it.

    chosen: the engine's arguments. template: whether the operator gives a chat template. native: whether transformers
    has code for its model type; None where nobody has looked.
    """
    kind = facts.model_type or "its kind"
    reasons = [
        (
            facts.remote_code and native is not True and not chosen.get("trust_remote_code"),
            "It brings Python code of its own, which is not run unless you allow it: "
            "`engine: {trust_remote_code: true}`, for a `revision` that you have read.",
        ),
        (not facts.takes_images, "It takes no pictures: its files have neither a vision tower nor an image processor."),
        (facts.model_type in WRONG_IN_VLLM, f"{kind}: {WRONG_IN_VLLM.get(kind, '')}."),
        (
            facts.attention == "prompt",
            f"{kind}: its prompt attends both ways, which is done for PaliGemma alone: say what it is `like`.",
        ),
        (
            facts.attention == "picture" and cpu and facts.model_type not in prefix_lm.PICTURES,
            f"{kind}: its pictures attend both ways, and vLLM 0.32 reads them causally on a processor, without a word, "
            f"which is mended for {' and '.join(prefix_lm.PICTURES)} alone: serve it on a GPU.",
        ),
        (
            facts.chat_template is None and not template and facts.model_type not in FALLBACKS,
            "It has no chat template, so nobody can tell how its prompts are written: give one, `chat_template: FILE`.",
        ),
        (
            facts.linear_attention
            and facts.model_type not in gated_delta_net.MODEL_TYPES
            and cpu
            and str(chosen.get("dtype", "float32")) in FLOAT32,
            f"{kind}: vLLM 0.32 computes its linear attention on a processor in bfloat16 alone: "
            "`engine: {dtype: bfloat16}`.",
        ),
        (
            facts.quantization is not None and cpu and facts.quantization not in ON_CPU,
            f"Its weights are quantised ({facts.quantization}), and vLLM 0.32 has no kernel for that on a processor.",
        ),
        (
            facts.quantization is not None and cpu and str(chosen.get("dtype", "float32")) in FLOAT32,
            f"Its weights are quantised ({facts.quantization}), and vLLM 0.32 computes with them on a processor in "
            "bfloat16 alone: `engine: {dtype: bfloat16}`.",
        ),
    ]
    return next((sentence for wrong, sentence in reasons if wrong), None)


def is_native(model_type: str | None) -> bool:
    """Return whether transformers or vLLM has code of its own for a model type. Imports transformers and vLLM."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from vllm.transformers_utils.config import _CONFIG_REGISTRY

    return model_type in CONFIG_MAPPING_NAMES or model_type in _CONFIG_REGISTRY
