"""PaddleOCR-VL (arXiv 2510.14528), 1.5 and 1.6: a vision transformer for any shape and ERNIE-4.5-0.3B.

vLLM 0.32 stretches its table of positions as the makers' own code does, and transformers 5.19 otherwise: with
`align_corners`. So vLLM is right, and the reference that it is held against is mended (tests/engines/test_named.py).
"""

from serve.models.document_reader import document_reader, reader_card
from serve.models.family import Size
from serve.models.hardware import CacheShape


def _size(name: str, hub: str, released: str, about: str) -> Size:
    # parameters: summed from the shapes, without tensors that are not used
    return Size(
        name,
        f"PaddlePaddle/{hub}",
        905_601_648,
        CacheShape(layers=18, heads=2, width=128),
        card={"released": released, "about": about},
    )


MODELS = document_reader(
    "OCR:",
    reader_card(
        organization="Baidu (PaddlePaddle)",
        released="",
        context_window=131_072,
        licence="Apache-2.0",
        links=("https://arxiv.org/abs/2510.14528",),
        overview=(
            "PaddleOCR-VL joins a vision transformer that takes pictures of any shape to ERNIE-4.5-0.3B. It is "
            "trained to transcribe the parts of documents: text, tables, formulas and charts, in 109 languages.",
            "It reads one part of a page at a time: its makers put a finder of such parts before it, which is not "
            "used here, so that whole pages are harder for it. Version 1.5 added stamps and the places of texts, "
            "and 1.6 was trained on where 1.5 was weak. It is not made to answer questions.",
        ),
    ),
    [
        _size(
            "paddleocr-vl", "PaddleOCR-VL", "2025-10-16", "Reads parts of pages, in 109 languages, with ERNIE-4.5-0.3B."
        ),
        _size(
            "paddleocr-vl-1.5", "PaddleOCR-VL-1.5", "2026-01-29", "PaddleOCR-VL's shape; reads stamps and scenes too."
        ),
        _size(
            "paddleocr-vl-1.6", "PaddleOCR-VL-1.6", "2026-05-28", "The shape of 1.5, trained on where that was weak."
        ),
    ],
    expect={"architectures": ["PaddleOCRVLForConditionalGeneration"]},
)
