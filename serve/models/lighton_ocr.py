"""LightOnOCR-2 (arXiv 2601.14251): it is shown a page and asked nothing."""

from serve.models.document_reader import document_reader, reader_card
from serve.models.family import Size
from serve.models.hardware import CacheShape

MODELS = document_reader(
    "",
    reader_card(
        organization="LightOn",
        released="2026-01-19",
        context_window=16_384,
        licence="Apache-2.0",
        links=("https://arxiv.org/abs/2601.14251",),
        about="Pixtral's kind of vision transformer and a small Qwen3.",
        overview=(
            "LightOnOCR-2 joins an image encoder of Pixtral's kind to a small Qwen3. It is trained from end to end "
            "to write the text of a page, in the order in which it is read, as Markdown. It is shown the page and "
            "told nothing.",
            "It reads whole pages without a finder of their parts, with tables and formulas, and takes no "
            "questions. It does not say where a word stands; other checkpoints of it write boxes of the pictures in "
            "a page. It came after LightOnOCR-1B.",
        ),
    ),
    # parameters: summed from the shapes
    [Size("lighton-ocr-2-1b", "lightonai/LightOnOCR-2-1B", 1_005_647_872, CacheShape(layers=28, heads=8, width=128))],
)
