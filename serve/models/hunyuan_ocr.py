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
        licence="Tencent Hunyuan Community License (not in the EU, the UK or South Korea)",
        links=("https://arxiv.org/abs/2511.19575",),
        about="Reads in one pass what others split into finding lines and reading them.",
        overview=(
            "HunyuanOCR joins a vision transformer to a small Hunyuan language model, and is trained from end to "
            "end: it finds and reads text in one pass. Besides text it was trained on layouts, tables, charts, "
            "translation and questions about documents.",
            "It reads documents, signs and old prints, its makers say in more than 100 languages. Here it is asked "
            "for text alone, in words that they prescribe, since others may make it worse. By now its repository "
            "holds version 1.5, and the first in the folder v1.0: a deployment's revision says which is served.",
        ),
    ),
    # parameters: as the makers round them
    [Size("hunyuan-ocr", "tencent/HunyuanOCR", 1_000_000_000, CacheShape(layers=24, heads=8, width=128))],
    system="",
)
