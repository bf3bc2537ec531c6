"""LLaVA-NeXT-Video: LLaVA-NeXT on Vicuna that also reads frames, each pooled to a quarter of its tokens."""

from typing import Any

from . import llava, vocabulary
from .llava_next import GRID

SIDE, PATCH = 32, 4  # vLLM divides by side // patch**2, which must not be 0; 16 tokens a frame


def build(context: int) -> tuple[Any, Any]:
    from transformers import (
        LlamaConfig,
        LlavaNextImageProcessor,
        LlavaNextVideoConfig,
        LlavaNextVideoForConditionalGeneration,
        LlavaNextVideoProcessor,
        LlavaNextVideoVideoProcessor,
    )

    tokenizer = vocabulary.llama(["<video>", "<image>"])
    tiles = [[rows * SIDE, columns * SIDE] for rows, columns in GRID]
    config = LlavaNextVideoConfig(
        vision_config=llava.clip(SIDE, PATCH),
        text_config=LlamaConfig(**llava.text(tokenizer, context)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=tiles,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    square: dict[str, Any] = {
        "size": {"shortest_edge": SIDE},
        "crop_size": {"height": SIDE, "width": SIDE},
    }
    processor = LlavaNextVideoProcessor(
        LlavaNextVideoVideoProcessor(**square),
        LlavaNextImageProcessor(**square, image_grid_pinpoints=tiles),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return LlavaNextVideoForConditionalGeneration(config), processor
