"""LLaVA-OneVision (arXiv 2408.03326): SigLIP at 384 pixels and Qwen2; images in up to ten tiles, and videos."""

from collections.abc import Mapping, Sequence
from typing import Any

from serve.models.base import CHECKED, Card, Checkpoint, Model, Turn, unchanged
from serve.models.hardware import CacheShape, hardware
from serve.models.llava_tasks import FURTHER, llava_skills
from serve.models.turns import media_marker, split_system

CONTEXT = 32_768
FRAMES = 32  # as in training; 196 tokens each
PAD_COLOUR = (127, 127, 127)  # int(255 * SigLIP mean)
END = "<|im_end|>"


def onevision_prompt(turns: Sequence[Turn]) -> str:
    """Return the turns in the checkpoints' chat template, as in transformers' test of it: ChatML with a space after the
    role, where the image or video is marked."""
    system, rest = split_system(turns)
    parts = [] if system is None else [f"<|im_start|>system \n{system}{END}"]
    parts += [f"<|im_start|>{turn.role} {media_marker(turn)}\n{turn.text}{END}" for turn in rest]
    return "".join(parts) + "<|im_start|>assistant\n"


def _model(size: str, cache_shape: CacheShape, parameters: int, revision: str, expect: Mapping[str, Any]) -> Model:
    name = f"llava-onevision-qwen2-{size}-ov"
    hub = f"llava-hf/{name}-hf"
    return Model(
        name=name,
        checkpoint=Checkpoint(
            hub,
            revision,
            expect={
                "architectures": ["LlavaOnevisionForConditionalGeneration"],
                "text_config.model_type": "qwen2",
                "vision_config.image_size": 384,
                **expect,
            },
        ),
        card=Card(
            organization="LMMs-Lab and ByteDance",
            category="General vision-language assistant",
            modality="image, video and text in, text out",
            released="2024-08-06",
            context_window=CONTEXT,
            parameters=parameters,
            licence="Tongyi Qianwen (Qwen2 72B's), Apache-2.0 on the model page" if size == "72b" else "Apache-2.0",
            tasks=("vqa", "caption", "ocr", "chat", "video", "detect (prompted, one box a phrase)", *FURTHER),
            features=(
                "pictures in up to ten tiles (7,290 tokens)",
                f"films of {FRAMES} frames (196 tokens each)",
                "multi-turn conversation",
                "system message",
                "English and Chinese",
            ),
            links=("https://arxiv.org/abs/2408.03326", f"https://huggingface.co/{hub}"),
            about=f"One model for pictures and films: SigLIP-So400m at 384 pixels and Qwen2 {size.upper()}.",
            overview=(
                f"LLaVA-OneVision joins SigLIP's image encoder at 384 pixels to Qwen2 {size.upper()} by a projector "
                "of two layers. It was trained on single pictures first, then on several pictures and on films as "
                "well (the `ov` checkpoints are those), so that what it learned from pictures serves for films. A "
                f"picture is seen whole and in up to nine tiles; a film as {FRAMES} frames.",
                "It reads documents and charts, describes, converses, and answers about films, with Qwen2's longer "
                "context. A large picture costs up to 7,290 tokens, so it is slower on those than its size suggests. "
                "Boxes are not what it was trained for: it gives one a phrase when asked in LLaVA-1.5's words, and no "
                "masks. Qwen's own vision-language models, which write boxes by themselves, are more used today.",
            ),
            hardware=hardware(parameters, cache_shape, CONTEXT),
            checked=CHECKED,
        ),
        skills=llava_skills(onevision_prompt, frames=FRAMES, pad=PAD_COLOUR, ends=(END,)),
        ends=(END,),
        converse=onevision_prompt,
        prepare=unchanged,
        family_args={"max_model_len": CONTEXT, "limit_mm_per_prompt": {"image": 1, "video": 1}},
        videos=True,
        frames=FRAMES,
    )


# Revisions: commits seen in public code and documents that name these repositories. Parameters: summed from the shapes.
MODELS = [
    _model(
        "0.5b",
        CacheShape(layers=24, heads=2, width=64),
        893_675_552,
        "74dd0bf867a4cda7950c17663794267c60cf4b40",
        {"text_config.hidden_size": 896},
    ),
    _model(
        "7b",
        CacheShape(layers=28, heads=4, width=128),
        8_030_807_584,
        "0d50680527681998e456c7b78950205bedd8a068",
        {"text_config.hidden_size": 3584},
    ),
    _model(
        "72b",
        CacheShape(layers=80, heads=8, width=128),
        73_181_570_592,
        "7f872aec22af34da2b31b2b3efb6a6403a5bb6c7",
        {"text_config.hidden_size": 8192},
    ),
]
