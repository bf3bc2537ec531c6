"""LLaVA-NeXT-Video (llava-vl.github.io/blog/2024-04-30-llava-next-video): LLaVA-NeXT fine-tuned on videos.

It takes videos only. The reference also takes images, in LLaVA-NeXT's tiles; vLLM 0.32 refuses them for this
architecture, and an image as a video of one frame would be pooled to 144 tokens, which changes the answer.
"""

from serve.models.base import CHECKED, Card, Checkpoint, Model, unchanged
from serve.models.hardware import hardware
from serve.models.llava import VICUNA_7B, llava_prompt
from serve.models.llava_tasks import llava_skills

FRAMES = 24  # of 144 tokens each: 32 would not fit into 4,096 tokens
_HUB = "llava-hf/LLaVA-NeXT-Video-7B-hf"

MODELS = [
    Model(
        name="llava-next-video-7b",
        checkpoint=Checkpoint(
            _HUB,
            "e8502659e3d5a90124a1294331de3b1bc8a9d5d4",  # a commit seen on its hub page, with the corrected config.json
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
            tasks=(
                "vqa (video)",
                "caption (video)",
                "chat (video)",
                "ocr (video, prompted)",
                "count (video, prompted)",
                "classify (prompted)",
            ),
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
            overview=(
                "LLaVA-NeXT-Video is LLaVA-NeXT with Vicuna 7B, trained further on films with instructions. CLIP's "
                f"image encoder sees each frame at 336 pixels; a frame is pooled to 144 tokens, so that {FRAMES} "
                "frames, evenly spaced, fit into its context beside the question.",
                "It tells what happens in a short film and answers questions about it. What falls between two frames "
                "it never sees, text in a frame is mostly too small for it, and here it takes films alone. "
                "LLaVA-OneVision came after it: one model for pictures and films, with a longer context.",
            ),
            hardware=hardware(7_063_431_168, VICUNA_7B, 4096),
            checked=CHECKED,
        ),
        skills=llava_skills(llava_prompt, images=False, frames=FRAMES),
        converse=llava_prompt,
        prepare=unchanged,
        family_args={"max_model_len": 4096, "limit_mm_per_prompt": {"video": 1}},
        images=False,
        videos=True,
        frames=FRAMES,
    ),
]
