"""Qwen3-VL (arXiv 2511.21631): boxes and points in thousandths of the picture, dense and with experts."""

from serve.models.base import Card
from serve.models.contracts import QWEN3_VL, QWEN3_VL_POINTS
from serve.models.family import Size, family, refuse_oblong
from serve.models.hardware import CacheShape
from serve.models.qwen_tasks import NATIVE, qwen_skills


def _size(name: str, released: str, parameters: int, cache_shape: CacheShape, hidden_size: int) -> Size:
    experts = "Moe" if "-A" in name else ""
    return Size(
        f"qwen3-vl-{name.lower()}",
        f"Qwen/Qwen3-VL-{name}-Instruct",
        parameters,
        cache_shape,
        REVISIONS.get(name),
        expect={
            "architectures": [f"Qwen3VL{experts}ForConditionalGeneration"],
            "text_config.hidden_size": hidden_size,
            "text_config.num_hidden_layers": cache_shape.layers,
        },
        card={"released": released},
    )


REVISIONS = {
    "4B": "ebb281ec70b05090aa6165b016eac8ec08e71b17",
    "8B": "0c351dd01ed87e9c1b53cbc748cba10e6187ff3b",
}

MODELS = family(
    Card(
        organization="Alibaba Cloud (Qwen)",
        category="General vision-language assistant",
        modality="image and text in, text out",
        released="2025-09-23",
        context_window=262_144,
        parameters=None,
        licence="Apache-2.0",
        tasks=(),
        features=(
            "pictures in their own size and shape",
            "boxes and points in thousandths of the picture",
            "reads text in 32 languages",
            "multi-turn conversation",
            "system message",
        ),
        links=("https://arxiv.org/abs/2511.21631",),
        about="Features of several layers of a SigLIP-2 tower enter the first layers of Qwen3; positions in time, "
        "height and width are interleaved.",
        overview=(
            "Qwen3-VL joins a SigLIP-2 image encoder, whose features of several depths enter the first layers of the "
            "language model, to Qwen3; two of its sizes choose a few of 128 experts for each token. It takes a "
            "picture in its own size and shape with a token for each square of 32 pixels, and was trained on "
            "documents, screens, films and places, in a context of 256 thousand tokens.",
            "It finds and points at many objects by their names, in thousandths of the picture, reads text in 32 "
            "languages, and describes long documents and films. Faults of an engine show in its boxes first: its "
            "places go wrong where text and answers stay right. In very oblong pictures it misplaces things. Qwen3.5 "
            "came after it, which is trained on text and pictures together.",
        ),
    ),
    [
        _size("2B", "2025-10-21", 2_127_532_032, CacheShape(layers=28, heads=8, width=128), 2048),
        _size("4B", "2025-10-15", 4_437_815_808, CacheShape(layers=36, heads=8, width=128), 2560),
        _size("8B", "2025-10-15", 8_767_123_696, CacheShape(layers=36, heads=8, width=128), 4096),
        _size("32B", "2025-10-21", 33_357_390_064, CacheShape(layers=64, heads=8, width=128), 5120),
        _size("30B-A3B", "2025-10-04", 31_070_754_032, CacheShape(layers=48, heads=4, width=128), 2048),
        _size("235B-A22B", "2025-09-23", 235_670_022_896, CacheShape(layers=94, heads=4, width=128), 4096),
    ],
    native=NATIVE,
    skills=qwen_skills(QWEN3_VL, QWEN3_VL_POINTS),
    prepare=refuse_oblong,
)
