"""Qwen3.5, and Qwen3.6 and 3.8 of the same architecture: most layers keep a state of fixed size, a gated delta net.

They reason before they answer where a request asks for it. Boxes and points as Qwen3-VL's.
"""

from serve.models.contracts import QWEN3_VL, QWEN3_VL_POINTS
from serve.models.family import Size, family, refuse_oblong
from serve.models.hardware import CacheShape
from serve.models.qwen_tasks import NATIVE, qwen_card, qwen_skills
from serve.models.reasoning import THINK, Reasoning
from serve.models.tool_calls import QWEN3_CODER


def _size(version: str, name: str, released: str, parameters: int, hidden: int, layers: int, heads: int) -> Size:
    """Return a size. layers: of all kinds; every fourth keeps keys and values, of `heads` heads."""
    experts, known_as = "Moe" if "-A" in name else "", f"qwen{version}-{name.lower()}"
    return Size(
        known_as,
        f"Qwen/Qwen{version}-{name}",
        parameters,
        CacheShape(layers=layers // 4, heads=heads, width=256),
        REVISIONS.get(known_as),
        expect={
            "architectures": [f"Qwen3_5{experts}ForConditionalGeneration"],
            "text_config.hidden_size": hidden,
            "text_config.num_hidden_layers": layers,
        },
        card={"released": released},
    )


REVISIONS = {
    "qwen3.5-0.8b": "2fc06364715b967f1860aea9cf38778875588b17",
    "qwen3.5-4b": "851bf6e806efd8d0a36b00ddf55e13ccb7b8cd0a",
    "qwen3.5-9b": "c202236235762e1c871ad0ccb60c8ee5ba337b9a",
    "qwen3.8-27b": "1d4bf0f2ff6012fd82039f2fa52739d0dd7c60c0",
}

MODELS = family(
    qwen_card(
        "boxes and points in thousandths of the picture",
        "reasoning, off unless a request says otherwise",
        "201 languages",
        released="2026-02-16",
        context_window=262_144,
        links=("https://qwen.ai/blog?id=qwen3.5",),
        about="Trained on text and pictures together from the start: Qwen3-VL's tower, and a language model of which "
        "three layers in four are gated delta nets, whose memory does not grow with the text.",
        overview=(
            "Qwen3.5 is one model for text, pictures and films, trained on all of them from the start. Three of four "
            "of its layers are gated delta nets, which keep a state of fixed size in place of keys and values, so "
            "that long contexts cost little; the larger ones choose a few of several hundred experts. Qwen3.6 and "
            "Qwen3.8 are later weights of the same architecture.",
            "Its smallest sizes run on a laptop, and are meant for trials and for fine-tuning. It reasons at "
            "length before it answers where it is asked to, and answers at once here unless it is. Boxes and points "
            "are in thousandths of the picture, as Qwen3-VL's. vLLM computes it on a processor in bfloat16 alone; "
            "this project does so in float32, exactly and slowly.",
        ),
    ),
    # without the layers that guess several tokens ahead, which are not loaded
    [
        _size("3.5", "0.8B", "2026-03-02", 852_985_920, 1024, layers=24, heads=2),
        _size("3.5", "2B", "2026-03-02", 2_213_241_664, 2048, layers=24, heads=2),
        _size("3.5", "4B", "2026-03-02", 4_539_265_536, 2560, layers=32, heads=4),
        _size("3.5", "9B", "2026-03-02", 9_409_813_744, 4096, layers=32, heads=4),
        _size("3.5", "27B", "2026-02-24", 27_356_728_560, 5120, layers=64, heads=4),
        _size("3.5", "35B-A3B", "2026-02-24", 35_107_181_936, 2048, layers=40, heads=2),
        _size("3.5", "122B-A10B", "2026-02-24", 122_562_817_776, 3072, layers=48, heads=2),
        _size("3.5", "397B-A17B", "2026-02-16", 396_802_360_816, 4096, layers=60, heads=2),
        _size("3.6", "27B", "2026-04-22", 27_356_728_560, 5120, layers=64, heads=4),
        _size("3.6", "35B-A3B", "2026-04-16", 35_107_181_936, 2048, layers=40, heads=2),
        _size("3.8", "27B", "2026-08-14", 27_356_728_560, 5120, layers=64, heads=4),
    ],
    native=NATIVE,
    skills=qwen_skills(QWEN3_VL, QWEN3_VL_POINTS),
    prepare=refuse_oblong,
    reasoning=Reasoning((THINK,), switchable=True, on=False),
    tools=QWEN3_CODER,
)
