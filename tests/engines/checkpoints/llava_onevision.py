"""LLaVA-OneVision: SigLIP and Qwen2, tiles up to a cap for a picture, pooled frames for a film."""

from typing import Any

from . import llava, vocabulary

SIDE, PATCH = 42, 14  # an odd number of patches a side, as the published 27
GRID = [[rows, columns] for rows in range(1, 7) for columns in range(1, 7)]


def build(context: int) -> tuple[Any, Any]:
    return _build(context, tied=False)


def tied(context: int) -> tuple[Any, Any]:
    """Tie the embeddings to the output layer, as the smallest model does."""
    return _build(context, tied=True)


def _build(context: int, *, tied: bool) -> tuple[Any, Any]:
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
        Qwen2Config,
        SiglipVisionConfig,
    )

    tokenizer = vocabulary.qwen(["<image>", "<video>"])
    tiles = [[rows * SIDE, columns * SIDE] for rows, columns in GRID]
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
            image_size=SIDE, patch_size=PATCH, vision_use_head=False,
        ),
        text_config=Qwen2Config(**llava.text(tokenizer, context, heads=2), tie_word_embeddings=tied),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=tiles, tie_word_embeddings=tied,
        vision_feature_layer=-1, vision_feature_select_strategy="full", vision_aspect_ratio="anyres_max_9",
    )  # fmt: skip
    square = {"size": {"height": SIDE, "width": SIDE}}
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(**square, image_grid_pinpoints=tiles),
        tokenizer,
        LlavaOnevisionVideoProcessor(**square),
        num_image_tokens=(SIDE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
    )
    return LlavaOnevisionForConditionalGeneration(config), processor
