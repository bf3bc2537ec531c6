"""HunyuanOCR: a vision transformer and a small Hunyuan, asked in Chinese after an empty system message."""

from serve.models.document_reader import document_reader, reader_card
from serve.models.family import Size
from serve.models.hardware import CacheShape

READ = "提取图中的文字。"  # "Extract the text in the image.": inference/utils/tasks.py in the makers' repository

MODELS = document_reader(
    READ,
    reader_card(
        organization="Tencent (Hunyuan)",
        released="2025-11-25",
        context_window=32_768,
        licence="Tencent Hunyuan Community License",
        about="Reads in one pass what others split into finding lines and reading them.",
        overview=(
            "HunyuanOCR joins a vision transformer to a small Hunyuan language model, and is trained from end to "
            "end: it finds and reads text in one pass. Besides text it was trained on layouts, tables, charts, "
            "translation and questions about documents.",
            "It reads documents, signs and old prints. Here it is asked for text alone, in the words that its "
            "makers trained it on, since others make it worse. Version 1.5 came after it in the same repository of "
            "code.",
        ),
    ),
    # parameters: as the makers round them
    [Size("hunyuan-ocr", "tencent/HunyuanOCR", 1_000_000_000, CacheShape(layers=24, heads=8, width=128))],
    system="",
)
