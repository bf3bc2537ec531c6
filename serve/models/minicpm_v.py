"""MiniCPM-V 4.6: SigLIP2 and Qwen3.5-0.8B, whose linear attention has kernels of its own."""

from serve.models.base import Card
from serve.models.contracts import QWEN3_VL
from serve.models.family import Size, family
from serve.models.hardware import CacheShape

MODELS = family(
    Card(
        organization="OpenBMB",
        category="Small vision-language assistant",
        modality="image and text in, text out",
        released="2026-05-11",
        context_window=262_144,
        parameters=None,
        licence="Apache-2.0",
        tasks=(),
        features=("tiles whose tokens are compressed 4 or 16 times", "multi-turn conversation", "system message"),
        links=("https://github.com/OpenBMB/MiniCPM-V",),
        about="SigLIP2 and Qwen3.5-0.8B, most of whose layers have linear attention.",
        overview=(
            "MiniCPM-V 4.6 joins SigLIP2 to Qwen3.5-0.8B, most of whose layers have linear attention in place of "
            "the ordinary kind. Pictures are cut into slices, and the tokens of each are compressed four or sixteen "
            "times before the language model gets them.",
            "It is made for telephones. Its makers report that it reads and answers about as well as Qwen3.5-2B, "
            "with fewer tokens. A checkpoint of its own reasons before it answers; this one does not. MiniCPM-V "
            "4.7, which knows where in a picture each slice lies, came after it.",
        ),
    ),
    # parameters: summed from the shapes; cache shape: of the layers with full attention
    [
        Size(
            "minicpm-v-4.6",
            "openbmb/MiniCPM-V-4.6",
            1_300_659_440,
            CacheShape(layers=6, heads=2, width=256),
            expect={"architectures": ["MiniCPMV4_6ForConditionalGeneration"]},
        )
    ],
    native=("vqa", "caption", "ocr", "chat"),
    boxes=QWEN3_VL,
)
