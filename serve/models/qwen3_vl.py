"""Qwen3-VL (arXiv 2511.21631): boxes and points in thousandths of the picture, dense and with experts."""

from dataclasses import replace
from typing import Literal

from serve.models.contracts import QWEN3_VL, QWEN3_VL_POINTS
from serve.models.family import Size, family, refuse_oblong
from serve.models.hardware import CacheShape
from serve.models.qwen_tasks import NATIVE, qwen_card, qwen_skills
from serve.models.reasoning import THINK, Reasoning
from serve.models.tool_calls import HERMES

SIZES = {  # release, parameters, layers, key-value heads, width
    "2B": ("2025-10-21", 2_127_532_032, 28, 8, 2048),
    "4B": ("2025-10-15", 4_437_815_808, 36, 8, 2560),
    "8B": ("2025-10-15", 8_767_123_696, 36, 8, 4096),
    "32B": ("2025-10-21", 33_357_390_064, 64, 8, 5120),
    "30B-A3B": ("2025-10-04", 31_070_754_032, 48, 4, 2048),
    "235B-A22B": ("2025-09-23", 235_670_022_896, 94, 4, 4096),
}
REVISIONS = {
    "4B-Instruct": "ebb281ec70b05090aa6165b016eac8ec08e71b17",
    "8B-Instruct": "0c351dd01ed87e9c1b53cbc748cba10e6187ff3b",
}


def _sizes(edition: Literal["Instruct", "Thinking"]) -> list[Size]:
    """Return the sizes of an edition: both have the same shapes."""
    end = "" if edition == "Instruct" else "-thinking"
    return [
        Size(
            f"qwen3-vl-{name.lower()}{end}",
            f"Qwen/Qwen3-VL-{name}-{edition}",
            parameters,
            CacheShape(layers=layers, heads=heads, width=128),
            REVISIONS.get(f"{name}-{edition}"),
            expect={
                "architectures": [f"Qwen3VL{'Moe' if '-A' in name else ''}ForConditionalGeneration"],
                "text_config.hidden_size": width,
                "text_config.num_hidden_layers": layers,
            },
            card={"released": released},
        )
        for name, (released, parameters, layers, heads, width) in SIZES.items()
    ]


CARD = qwen_card(
    "boxes and points in thousandths of the picture",
    "reads text in 32 languages",
    released="2025-09-23",
    context_window=262_144,
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
)

THINKING = replace(
    CARD,
    category="Vision-language model that reasons",
    features=(*CARD.features, "reasons before each answer"),
    about="Qwen3-VL, trained further to reason before it answers.",
    overview=(
        CARD.overview[0] + " Of each size there is an edition that was trained further to reason, by "
        "reinforcement learning; this is that one.",
        "It is made for problems of several steps: mathematics, charts, documents, where things stand in a room. It "
        "reasons before each answer, at length, and nothing turns that off; the edition without answers at once, and "
        "boxes and plain facts seldom need more. Its makers draw its words at random, as it may repeat itself "
        "where each is the likeliest one.",
    ),
)

MODELS = [
    *family(
        CARD,
        _sizes("Instruct"),
        native=NATIVE,
        skills=qwen_skills(QWEN3_VL, QWEN3_VL_POINTS),
        prepare=refuse_oblong,
        tools=HERMES,
    ),
    *family(
        THINKING,
        _sizes("Thinking"),
        native=NATIVE,
        skills=qwen_skills(QWEN3_VL, QWEN3_VL_POINTS),
        prepare=refuse_oblong,
        tools=HERMES,
        reasoning=Reasoning((THINK,), on=True),
    ),
]
