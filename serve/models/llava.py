"""LLaVA-1.5 (arXiv 2310.03744): CLIP-L at 336 pixels and Vicuna. Prompts are those of its training and evaluation."""

import dataclasses
from collections.abc import Sequence

from serve.media.geometry import pad_to_square
from serve.media.image import Image
from serve.models.base import CHECKED, Card, Checkpoint, Model, Turn
from serve.models.hardware import CacheShape, hardware
from serve.models.llava_tasks import FURTHER, llava_skills
from serve.models.turns import split_system, with_marker

# int(255 * CLIP mean), as the original pads. The Hugging Face processor crops instead, so we pad before it.
PAD_COLOUR = (122, 116, 104)


def llava_prompt(turns: Sequence[Turn]) -> str:
    """Return the published form `SYSTEM USER: <image>\\nq ASSISTANT: a</s>USER: q ASSISTANT:`; SYSTEM is optional."""
    system, rest = split_system(turns)
    parts = (f"USER: {with_marker(t)} ASSISTANT:" if t.role == "user" else f" {t.text}</s>" for t in rest)
    return ("" if system is None else f"{system} ") + "".join(parts)


def pad(image: Image) -> Image:
    return pad_to_square(image, PAD_COLOUR)


VICUNA_7B = CacheShape(layers=32, heads=32, width=128)
VICUNA_13B = CacheShape(layers=40, heads=40, width=128)
_PAPER = "https://arxiv.org/abs/2310.03744"
_OVERVIEW = (
    "LLaVA-1.5 joins CLIP's image encoder to the language model Vicuna by a projector of two layers. It sees a "
    "picture as one square of 336 pixels, padded and made smaller, which becomes 576 tokens before the question. It "
    "was trained on conversations about pictures and on public sets of questions, where a suffix asks for a single "
    "word or phrase, and on regions of pictures, whose coordinates it writes as text.",
    "It talks about a photograph over several turns and answers short questions in plain language, and it is the "
    "model that many later ones are compared with. Small text is lost in its 336 pixels, it may name things that are "
    "not there, it gives one box a phrase, and no masks. LLaVA-NeXT came after it, with more pixels, and "
    "LLaVA-OneVision, with films.",
)
_CARD = Card(
    organization="University of Wisconsin-Madison and Microsoft Research",
    category="General vision-language assistant",
    modality="image and text in, text out",
    released="2023-10-05",
    context_window=4096,
    parameters=7_063_427_072,
    licence="Llama 2 Community License",
    tasks=("vqa", "caption", "chat", "ocr (prompted)", "detect (one box a phrase)", *FURTHER),
    features=("multi-turn conversation", "system message", "region coordinates in text"),
    links=(_PAPER, "https://huggingface.co/llava-hf/llava-1.5-7b-hf"),
    about="Visual instruction tuning: a CLIP ViT-L/14 at 336 pixels, a two-layer projector and Vicuna v1.5.",
    overview=_OVERVIEW,
    hardware=hardware(7_063_427_072, VICUNA_7B, 4096),
    checked=CHECKED,
)
_EXPECT = {
    "architectures": ["LlavaForConditionalGeneration"],
    "text_config.max_position_embeddings": 4096,
    "text_config.vocab_size": 32_064,
    "vision_config.image_size": 336,
}
_FAMILY_ARGS = {"max_model_len": 4096, "limit_mm_per_prompt": {"image": 1}}


# Revisions: commits seen in public code that loads these files from a hub cache.
MODELS = [
    Model(
        name="llava-1.5-7b",
        checkpoint=Checkpoint(
            "llava-hf/llava-1.5-7b-hf",
            "b234b804b114d9e37bb655e11cbbb5f5e971b7a9",
            expect={**_EXPECT, "text_config.hidden_size": 4096},
        ),
        card=_CARD,
        skills=llava_skills(llava_prompt),
        converse=llava_prompt,
        prepare=pad,
        family_args=_FAMILY_ARGS,
    ),
    Model(
        name="llava-1.5-13b",
        checkpoint=Checkpoint(
            "llava-hf/llava-1.5-13b-hf",
            "5dda2880bda009266dda7c4baff660b95ca64540",
            expect={**_EXPECT, "text_config.hidden_size": 5120},
        ),
        card=dataclasses.replace(
            _CARD,
            parameters=13_351_494_656,
            links=(_PAPER, "https://huggingface.co/llava-hf/llava-1.5-13b-hf"),
            hardware=hardware(13_351_494_656, VICUNA_13B, 4096),
        ),
        skills=llava_skills(llava_prompt),
        converse=llava_prompt,
        prepare=pad,
        family_args=_FAMILY_ARGS,
    ),
]
