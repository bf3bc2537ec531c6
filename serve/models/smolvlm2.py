"""SmolVLM2 (arXiv 2504.05299): SigLIP and SmolLM2, small enough for a laptop; pictures in tiles, scaled up first."""

from serve.models.base import Card
from serve.models.contracts import SMOLVLM
from serve.models.family import Size, family
from serve.models.hardware import CacheShape

MODELS = family(
    Card(
        organization="Hugging Face",
        category="Small vision-language assistant",
        modality="image and text in, text out",
        released="2025-02-20",
        context_window=8192,
        parameters=None,
        licence="Apache-2.0",
        tasks=(),
        features=("tiles and an overview, about a thousand tokens for a square picture", "multi-turn conversation"),
        links=("https://arxiv.org/abs/2504.05299",),
        about="Idefics3's way of cutting pictures with SmolLM2; trained on films too, which are not sent to it here.",
        overview=(
            "SmolVLM2 joins a SigLIP encoder to SmolLM2, in sizes for a laptop. As in Idefics3 a picture is scaled "
            "up, cut into tiles and shown once more as a whole, and neighbouring patches become one token. It is "
            "trained on pictures, documents and films.",
            "Its makers run its 500M size on a telephone. It describes pictures, answers questions about them "
            "and reads text in photographs. No form of boxes of its own was found; it is told to write them, and "
            "follows such instructions weakly. Films are not sent to it here.",
        ),
    ),
    # parameters: summed from the shapes
    [
        Size(
            "smolvlm2-256m",
            "HuggingFaceTB/SmolVLM2-256M-Video-Instruct",
            256_484_928,
            CacheShape(layers=30, heads=3, width=64),
            expect={"text_config.hidden_size": 576},
        ),
        Size(
            "smolvlm2-500m",
            "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
            507_482_304,
            CacheShape(layers=32, heads=5, width=64),
            expect={"text_config.hidden_size": 960},
        ),
        Size(
            "smolvlm2-2.2b",
            "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
            2_246_784_880,
            CacheShape(layers=24, heads=32, width=64),
            expect={"text_config.hidden_size": 2048},
        ),
    ],
    native=("vqa", "caption", "ocr", "chat"),
    boxes=SMOLVLM,
    expect={"architectures": ["SmolVLMForConditionalGeneration"]},
)
