"""LLaVA-NeXT-Video (llava-vl.github.io/blog/2024-04-30-llava-next-video): LLaVA-NeXT trained on, with films.

Films only. The reference also takes pictures, in LLaVA-NeXT's tiles; vLLM 0.32 refuses them for this architecture, and
a picture given as a film of one frame would be pooled to 144 tokens: another answer than the reference's.
"""

from serve.media.image import Image
from serve.models.base import CHECKED, Card, Checkpoint, Model
from serve.models.hardware import hardware
from serve.models.llava import VICUNA_7B, converse
from serve.models.llava_tasks import skills

FRAMES = 24  # of 144 tokens each: 32 would not fit into 4,096 tokens
_HUB = "llava-hf/LLaVA-NeXT-Video-7B-hf"


def prepare(image: Image) -> Image:
    """No picture comes here."""
    return image


MODELS = [
    Model(
        name="llava-next-video-7b",
        checkpoint=Checkpoint(
            _HUB,
            "e8502659e3d5a90124a1294331de3b1bc8a9d5d4",  # a commit of its page on the hub, with the mended config.json
            expect={
                "architectures": ["LlavaNextVideoForConditionalGeneration"],
                "text_config.model_type": "llama",
                "text_config.hidden_size": 4096,
                "text_config.max_position_embeddings": 4096,
                "vision_config.image_size": 336,
            },
        ),
        card=Card(
            organization="LMMs-Lab and ByteDance",
            category="Video assistant",
            modality="video and text in, text out",
            released="2024-05-10",
            context_window=4096,
            parameters=7_063_431_168,
            licence="Llama 2 Community License",
            tasks=("vqa (video)", "caption (video)", "chat (video)", "ocr (video, prompted)"),
            features=(
                f"films of {FRAMES} frames (144 tokens each)",
                "multi-turn conversation",
                "pictures only in the reference, not here",
            ),
            links=(
                "https://llava-vl.github.io/blog/2024-04-30-llava-next-video/",
                f"https://huggingface.co/{_HUB}",
            ),
            about="LLaVA-NeXT with Vicuna 7B, trained further on films; each frame is pooled to 144 tokens.",
            hardware=hardware(7_063_431_168, VICUNA_7B, 4096),
            checked=CHECKED,
        ),
        skills=skills(converse, images=False, frames=FRAMES),
        converse=converse,
        prepare=prepare,
        family_args={"max_model_len": 4096, "limit_mm_per_prompt": {"video": 1}},
        images=False,
        videos=True,
        frames=FRAMES,
    ),
]
