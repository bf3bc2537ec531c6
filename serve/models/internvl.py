"""InternVL3.5 (arXiv 2508.18265) in transformers' layout: InternViT and Qwen3; boxes in thousandths, between tags."""

from serve.models.base import Card
from serve.models.contracts import INTERNVL
from serve.models.derived import points_of_boxes
from serve.models.family import Size, family
from serve.models.hardware import CacheShape
from serve.models.instructed import detect_each, messages_around
from serve.models.reasoning import THINK, Reasoning, system_switch

# of internvl_chat/eval/refcoco in the makers' repository
LOCATE = messages_around(
    "Please provide the bounding box coordinate of the region this sentence describes: <ref>", "</ref>"
)
DETECT = detect_each(LOCATE, INTERNVL, str)
PROTOCOL = """\
You are an AI assistant that rigorously follows this response protocol:

1. First, conduct a detailed analysis of the question. Consider different angles, potential solutions, and reason \
through the problem step-by-step. Enclose this entire thinking process within <think> and </think> tags.

2. After the thinking section, provide a clear, concise, and direct answer to the user's question. Separate the answer \
from the think section with a newline.

Ensure that the thinking process is thorough but remains focused on the query. The final answer should be standalone \
and not reference the thinking section."""
"""The makers' system message that turns reasoning on, from the model's page."""


def _size(name: str, parameters: int, cache_shape: CacheShape, hidden_size: int) -> Size:
    return Size(
        f"internvl3.5-{name.lower()}",
        f"OpenGVLab/InternVL3_5-{name}-HF",
        parameters,
        cache_shape,
        expect={"text_config.hidden_size": hidden_size},
    )


MODELS = family(
    Card(
        organization="OpenGVLab (Shanghai AI Laboratory)",
        category="General vision-language assistant",
        modality="image and text in, text out",
        released="2025-08-26",
        context_window=40_960,
        parameters=None,
        licence="Apache-2.0",
        tasks=(),
        features=(
            "tiles of 448 pixels and a thumbnail",
            "boxes in thousandths",
            "reasoning, off unless a request says otherwise",
            "multi-turn conversation",
        ),
        links=("https://arxiv.org/abs/2508.18265",),
        about="InternViT, a two-layer projector and Qwen3, tuned in stages that end in reinforcement learning.",
        overview=(
            "InternVL3.5 joins the image encoder InternViT, by a small projector, to Qwen3. It is trained in "
            "stages: on pictures and text together, on instructions, then by reinforcement learning, first on "
            "stored comparisons of replies and then on its own. A picture is cut into tiles, with a thumbnail of "
            "the whole beside them.",
            "It is a generalist that converses, reads documents and charts, and finds what a sentence describes, "
            "in boxes between tags. Many tiles cost many tokens. The image encoder of the 38B size has 5.5 billion "
            "parameters, that of the others 0.3 billion. It reasons where a system message tells it to. A "
            "variant called Flash spends fewer tokens on tiles with little in them; it is not served here.",
        ),
    ),
    # parameters: summed from the shapes; they round to those of the makers' table
    [
        _size("1B", 1_060_897_792, CacheShape(layers=28, heads=8, width=128), 1024),
        _size("2B", 2_348_347_392, CacheShape(layers=28, heads=8, width=128), 2048),
        _size("4B", 4_732_489_216, CacheShape(layers=36, heads=8, width=128), 2560),
        _size("8B", 8_528_318_464, CacheShape(layers=36, heads=8, width=128), 4096),
        _size("14B", 15_119_523_840, CacheShape(layers=40, heads=8, width=128), 5120),
        _size("38B", 38_390_405_504, CacheShape(layers=64, heads=8, width=128), 5120),
    ],
    native=("vqa", "caption", "ocr", "chat", "detect"),
    skills={"detect": DETECT, "point": points_of_boxes(DETECT)},
    expect={"architectures": ["InternVLForConditionalGeneration"], "text_config.model_type": "qwen3"},
    reasoning=Reasoning((THINK,), switchable=True, switch=system_switch(PROTOCOL), on=False),
)
