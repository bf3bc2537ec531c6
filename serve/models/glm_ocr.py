"""GLM-OCR (arXiv 2603.10910): CogViT and a small GLM."""

from serve.models.document_reader import document_reader, reader_card
from serve.models.family import Size
from serve.models.hardware import CacheShape

MODELS = document_reader(
    "Text Recognition:",
    reader_card(
        organization="Z.ai (Zhipu AI) and Tsinghua University",
        released="2026-02",
        context_window=131_072,
        licence="MIT",
        links=("https://arxiv.org/abs/2603.10910",),
        about="CogViT and a small GLM, whose layers for guessing several tokens ahead are not used here.",
        overview=(
            "GLM-OCR joins CogViT, an image encoder, to a small GLM by a connector that makes few tokens of a "
            "page. It is trained to transcribe text, tables and formulas, to guess several tokens ahead, and by "
            "reinforcement learning on all of its tasks.",
            "It reads print, tables and formulas, in several languages. Its makers put a finder "
            "of a page's parts before it, which is not used here, so that whole pages are harder for it. It "
            "also fills in a JSON schema, which is not asked of it here, and is not made to converse.",
        ),
    ),
    # parameters: summed from the shapes, without those layers
    [Size("glm-ocr", "zai-org/GLM-OCR", 1_107_405_824, CacheShape(layers=16, heads=8, width=128))],
    expect={"architectures": ["GlmOcrForConditionalGeneration"], "text_config.hidden_size": 1536},
)
