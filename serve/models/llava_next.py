"""LLaVA-NeXT, also called LLaVA-1.6 (llava-vl.github.io/blog/2024-01-30-llava-next): LLaVA with images cut into tiles.

An image becomes an overview of 336 pixels and up to four tiles of the same size, by its aspect ratio. It is padded to a
square for detection only (see llava_tasks). Each language model has its own chat template.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from serve.models.base import CHECKED, Card, Checkpoint, Model, Turn, unchanged
from serve.models.hardware import CacheShape, hardware
from serve.models.llava import PAD_COLOUR, VICUNA_7B, VICUNA_13B
from serve.models.llava_next_prompts import END, mistral_prompt, vicuna_prompt, yi_prompt
from serve.models.llava_tasks import FURTHER, llava_skills

OVERVIEW = (
    "LLaVA-NeXT, whose checkpoints are named v1.6, is LLaVA-1.5's recipe with more pixels: CLIP's image encoder sees "
    "the whole picture at 336 pixels and up to four tiles of it, chosen by its aspect ratio, up to 2,880 tokens in "
    "all. The language model is {}. More of its training was about text in pictures, documents and charts.",
    "It reads text and sees small things that LLaVA-1.5 misses, and still converses. The price is in the tokens: a "
    "picture costs up to five times as many, and as much more time and memory. Boxes come one a phrase and only when "
    "asked for in LLaVA-1.5's words; masks never. LLaVA-OneVision came after it, with a newer encoder, newer language "
    "models and films; LLaVA-NeXT-Video is the branch for films alone.",
)


def _model(
    name: str,
    language_model: str,
    converse: Callable[[Sequence[Turn]], str],
    cache_shape: CacheShape,
    *,
    parameters: int,
    revision: str,
    expect: Mapping[str, Any],
    licence: str = "Llama 2 Community License",
    context: int = 4096,
    max_model_len: int = 4096,
    ends: tuple[str, ...] = (),
) -> Model:
    hub = f"llava-hf/{name}-hf"
    fixed = {"architectures": ["LlavaNextForConditionalGeneration"], "text_config.max_position_embeddings": context}
    return Model(
        name=name,
        checkpoint=Checkpoint(hub, revision, expect={**fixed, "vision_config.image_size": 336, **expect}),
        card=Card(
            organization="University of Wisconsin-Madison and ByteDance",
            category="General vision-language assistant",
            modality="image and text in, text out",
            released="2024-01-30",
            context_window=context,
            parameters=parameters,
            licence=licence,
            tasks=("vqa", "caption", "ocr", "chat", "detect (prompted, one box a phrase)", *FURTHER),
            features=("pictures in up to five tiles (2,880 tokens)", "multi-turn conversation", "system message"),
            links=("https://llava-vl.github.io/blog/2024-01-30-llava-next/", f"https://huggingface.co/{hub}"),
            about=f"LLaVA with four times the pixels: a CLIP ViT-L/14 at 336 pixels over tiles, and {language_model}.",
            overview=(OVERVIEW[0].format(language_model), OVERVIEW[1]),
            hardware=hardware(parameters, cache_shape, max_model_len),
            checked=CHECKED,
        ),
        skills=llava_skills(converse, pad=PAD_COLOUR, ends=ends),
        ends=ends,
        converse=converse,
        prepare=unchanged,
        family_args={"max_model_len": max_model_len, "limit_mm_per_prompt": {"image": 1}},
    )


# Revisions: commits seen in public code that loads these files from a hub cache.
MODELS = [
    _model(
        "llava-v1.6-mistral-7b",
        "Mistral 7B Instruct v0.2",
        mistral_prompt,
        CacheShape(layers=32, heads=8, width=128),
        parameters=7_566_747_648,
        licence="Apache-2.0",
        revision="52320fb52229c8d942b1dcb8b63b3dc8087bc83b",
        expect={"text_config.model_type": "mistral", "text_config.vocab_size": 32_064},
        context=32_768,
        max_model_len=16_384,  # all 32,768 tokens of cache would not fit beside the weights on a card of 24 GB
    ),
    _model(
        "llava-v1.6-vicuna-7b",
        "Vicuna 7B v1.5",
        vicuna_prompt,
        VICUNA_7B,
        parameters=7_063_431_168,
        revision="c916e6cdcd760b4cecd1dd4907f84ac649f93b23",
        expect={"text_config.model_type": "llama", "text_config.hidden_size": 4096},
    ),
    _model(
        "llava-v1.6-vicuna-13b",
        "Vicuna 13B v1.5",
        vicuna_prompt,
        VICUNA_13B,
        parameters=13_351_499_776,
        revision="745cfbdb14dfeff9bcc6eb731937102e88ea3024",
        expect={"text_config.model_type": "llama", "text_config.hidden_size": 5120},
    ),
    _model(
        "llava-v1.6-34b",
        "Nous Hermes 2 Yi 34B",
        yi_prompt,
        CacheShape(layers=60, heads=8, width=128),
        parameters=34_752_083_968,
        licence="Apache-2.0",
        revision="66b6feb83d0249dc9f31a24bd3abfb63f90e41aa",
        expect={"text_config.model_type": "llama", "text_config.hidden_size": 7168},
        ends=(END,),
    ),
]
