"""LFM2.5-VL (arXiv 2511.23404): SigLIP2 and a language model of short convolutions and some attention.

Its sizes write boxes in two ways: in fractions of the picture, and the largest in thousandths whatever it is told.
"""

from collections.abc import Sequence

from serve.models.base import Card, Model
from serve.models.contracts import LFM2_VL, LFM2_VL_3B, Contract
from serve.models.family import Size, family
from serve.models.hardware import CacheShape


def _models(boxes: Contract, sizes: Sequence[Size]) -> list[Model]:
    return family(
        Card(
            organization="Liquid AI",
            category="Small vision-language assistant",
            modality="image and text in, text out",
            released="2026",
            context_window=32_768,
            parameters=None,
            licence="LFM Open License v1.0 (free below a threshold of revenue)",
            tasks=(),
            features=("tiles of 512 pixels and a thumbnail", "multi-turn conversation", "system message"),
            links=("https://arxiv.org/abs/2511.23404",),
            about="SigLIP2 NaFlex, which takes pictures in their own shape, and LFM2.5, made for small devices.",
            overview=(
                "LFM2.5-VL joins SigLIP2, which takes pictures in their own shape, to LFM2.5, a language model "
                "whose layers are mostly short convolutions and only partly attention, so that its cache stays "
                "small. Larger pictures are cut into tiles, with a thumbnail beside them.",
                "It is made for small devices, telephones among them, and reads several languages, the largest 16. "
                "Its sizes write boxes in different units, which are told apart here. Its makers recommend the "
                "largest for short tasks, such as finding objects and reading pages, and not for long reasoning. "
                "LFM3-VL came after it.",
            ),
        ),
        sizes,
        native=("vqa", "caption", "ocr", "chat"),
        boxes=boxes,
        expect={"architectures": ["Lfm2VlForConditionalGeneration"], "text_config.model_type": "lfm2"},
    )


# parameters: summed from the shapes; cache shapes: of the layers with attention
SMALL = _models(
    LFM2_VL,
    [
        Size(
            "lfm2.5-vl-450m",
            "LiquidAI/LFM2.5-VL-450M",
            448_724_992,
            CacheShape(layers=6, heads=8, width=64),
            expect={"text_config.hidden_size": 1024},
            card={"released": "2026-04"},
        ),
        Size(
            "lfm2.5-vl-1.6b",
            "LiquidAI/LFM2.5-VL-1.6B",
            1_596_635_120,
            CacheShape(layers=6, heads=8, width=64),
            expect={"text_config.hidden_size": 2048, "text_config.num_hidden_layers": 16},
            card={"released": "2026-01"},
        ),
    ],
)
LARGE = _models(
    LFM2_VL_3B,
    [
        Size(
            "lfm2.5-vl-3b",
            "LiquidAI/LFM2.5-VL-3B",
            3_123_493_104,
            CacheShape(layers=8, heads=8, width=64),
            expect={"text_config.hidden_size": 2048, "text_config.num_hidden_layers": 30},
            card={"released": "2026-08-12"},
        )
    ],
)
MODELS = [*SMALL, *LARGE]
