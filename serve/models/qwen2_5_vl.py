"""Qwen2.5-VL (arXiv 2502.13923): boxes in pixels of the picture as it was resized, sides in multiples of 28."""

from serve.models.contracts import QWEN2_5_VL, QWEN2_5_VL_POINTS
from serve.models.family import Size, family, refuse_oblong
from serve.models.hardware import CacheShape
from serve.models.qwen_tasks import NATIVE, qwen_card, qwen_skills


def _size(name: str, parameters: int, cache_shape: CacheShape, hidden_size: int, licence: str = "Apache-2.0") -> Size:
    return Size(
        f"qwen2.5-vl-{name.lower()}",
        f"Qwen/Qwen2.5-VL-{name}-Instruct",
        parameters,
        cache_shape,
        REVISIONS.get(name),
        expect={"text_config.hidden_size": hidden_size},
        card={"licence": licence, "released": "2025-03-24" if name == "32B" else "2025-01-26"},
    )


REVISIONS = {
    "3B": "66285546d2b821cf421d4f5eb2576359d3770cd3",
    "7B": "cc594898137f460bfe9f0759e9844b3ce807cfb5",
}

MODELS = family(
    qwen_card(
        "boxes and points in pixels",
        "many languages",
        released="2025-01-26",
        context_window=128_000,
        links=("https://arxiv.org/abs/2502.13923",),
        about="A vision transformer with attention in windows, trained on pictures of any size, and Qwen2.5.",
        overview=(
            "Qwen2.5-VL joins a vision transformer of its own to the language model Qwen2.5. It takes a picture in "
            "its own size and shape, rounded to multiples of 28 pixels, with a token for each square of 28. It was "
            "trained on captions, documents, charts, screens, films and places: it writes boxes and points as JSON, "
            "in pixels of the picture as it was resized.",
            "It reads text, tables and forms, follows instructions in many languages, and finds many objects at once "
            "by their names. Very large pictures cost many tokens, and very oblong ones it refuses. Its 3B and 72B "
            "sizes have licences of their own. Qwen3-VL came after it, and writes places in thousandths of the "
            "picture.",
        ),
    ),
    [
        _size("3B", 3_754_622_976, CacheShape(layers=36, heads=2, width=128), 2048, "Qwen Research License"),
        _size("7B", 8_292_166_656, CacheShape(layers=28, heads=4, width=128), 3584),
        _size("32B", 33_452_718_336, CacheShape(layers=64, heads=8, width=128), 5120),
        _size("72B", 73_410_777_344, CacheShape(layers=80, heads=8, width=128), 8192, "Qwen License"),
    ],
    native=NATIVE,
    skills=qwen_skills(QWEN2_5_VL, QWEN2_5_VL_POINTS),
    expect={"architectures": ["Qwen2_5_VLForConditionalGeneration"]},
    prepare=refuse_oblong,
)
