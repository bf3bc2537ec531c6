"""Aya Vision (arXiv 2505.08751) and Command A Vision: Cohere's language models with SigLIP."""

from typing import Any

from serve.models.base import Card
from serve.models.family import Size, family
from serve.models.hardware import CacheShape

NATIVE = ("vqa", "caption", "ocr", "chat")


def _card(*features: str, **fields: Any) -> Card:
    return Card(
        organization="Cohere",
        category="General vision-language assistant",
        modality="image and text in, text out",
        parameters=None,
        licence="CC-BY-NC-4.0 (gated)",
        tasks=(),
        features=(*features, "multi-turn conversation", "system message"),
        **fields,
    )


# parameters: summed from the shapes
MODELS = [
    *family(
        _card(
            "tiles of 364 pixels and an overview",
            "23 languages",
            released="2025-03-04",
            context_window=16_384,
            links=("https://arxiv.org/abs/2505.08751",),
            about="Command R7B or Aya Expanse 32B with SigLIP2; merged with its text model so as not to forget.",
            overview=(
                "Aya Vision joins SigLIP2 to Cohere's language models and is trained to talk about pictures in 23 "
                "languages, on captions and questions that other models rewrote and translated. Its weights are "
                "then merged with those of its text model, so that it keeps what that knew.",
                "It describes, answers, reads and translates in these languages. It is for research and not for "
                "commerce. No form in which it writes boxes was found. Command A Vision, which came after it, is its "
                "maker's large model for business.",
            ),
        ),
        [
            Size(
                "aya-vision-8b",
                "CohereLabs/aya-vision-8b",
                8_631_842_032,
                CacheShape(layers=32, heads=8, width=128),
                gated=True,
                expect={"text_config.hidden_size": 4096},
            ),
            Size(
                "aya-vision-32b",
                "CohereLabs/aya-vision-32b",
                33_137_288_432,
                CacheShape(layers=40, heads=8, width=128),
                gated=True,
                expect={"text_config.hidden_size": 8192},
            ),
        ],
        native=NATIVE,
        expect={"architectures": ["AyaVisionForConditionalGeneration"]},
    ),
    *family(
        _card(
            "tiles of 512 pixels",
            "six languages",
            released="2025-07-31",
            context_window=128_000,
            links=("https://docs.cohere.com/docs/command-a-vision",),
            about="Command A with SigLIP2, tuned for documents, charts and tables.",
            overview=(
                "Command A Vision joins SigLIP2 to Command A, Cohere's large language model. It is tuned for what "
                "companies have: documents, charts, diagrams and tables, in six languages of Europe.",
                "It reads and explains pages, diagrams and tables, and calls no tools. It needs several large "
                "GPUs, and its open weights are not for commerce. Its makers name detection among its uses, but no "
                "form in which it writes boxes was found. Command A+ came after it, a mixture of experts.",
            ),
        ),
        [
            Size(
                "command-a-vision",
                "CohereLabs/command-a-vision-07-2025",
                111_867_525_360,
                CacheShape(layers=64, heads=8, width=128),
                gated=True,
            )
        ],
        native=NATIVE,
        expect={"architectures": ["Cohere2VisionForConditionalGeneration"]},
    ),
]
