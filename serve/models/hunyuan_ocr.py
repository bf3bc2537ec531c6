"""HunyuanOCR 1.5: a vision transformer and a small Hunyuan, asked in Chinese after an empty system message."""

from serve.models.document_reader import document_reader, reader_card
from serve.models.family import Size
from serve.models.hardware import CacheShape

READ = (
    "提取图中的文字。"  # "Extract the text in the image.": inference/utils/tasks.py in the makers' repository, of 1.5
)
SPOT = (  # all lines, in reading order, as JSON with "box" in thousandths and "text": the same file
    "检测并识别图中所有的文字行，请按从上到下、从左到右的阅读顺序进行识别。 "
    "输出格式为 JSON 数组，每个元素必须包含："
    '"box": [xmin, ymin, xmax, ymax]（坐标需归一化到 [0, 1000] 范围内）；'
    '"text": "识别出的文字内容"。 '
    "注意：请直接输出 JSON 数组，"
    "不要包含任何多余的描述性文字。"
)

MODELS = document_reader(
    READ,
    reader_card(
        organization="Tencent (Hunyuan)",
        released="2026-07-07",
        context_window=131_072,
        licence="Tencent Hunyuan Community License (not in the EU, the UK or South Korea)",
        links=("https://arxiv.org/abs/2607.04884",),
        about="Version 1.5. Reads in one pass what others split into finding lines and reading them.",
        overview=(
            "HunyuanOCR joins a vision transformer to a small Hunyuan language model, and is trained from end to "
            "end: it finds and reads text in one pass. Version 1.5 has the architecture of 1.0 (arXiv 2511.19575), "
            "pictures of up to 4K in place of 2K, a longer context, and a last stage of training of its own: rare "
            "languages, old forms of Chinese writing, rewards against invented and repeated text.",
            "It reads documents, signs and old prints, in many languages. Here it is asked for text, alone or with its "
            "places, in words that its makers prescribe, since others may make it worse. This is what the head of its "
            "repository holds since July 2026; version 1.0, in that repository's folder v1.0, is not served here.",
        ),
    ),
    # parameters: as the makers round them
    [Size("hunyuan-ocr", "tencent/HunyuanOCR", 1_000_000_000, CacheShape(layers=24, heads=8, width=128))],
    system="",
    spot=SPOT,
)
