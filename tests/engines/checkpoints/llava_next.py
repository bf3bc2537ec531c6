"""LLaVA-NeXT: LLaVA with the picture once whole and once in tiles; on Mistral, and on Vicuna, which is a Llama."""

from typing import Any

from . import llava, vocabulary
from .llava import PATCH, SIDE

GRID = [[1, 2], [2, 1], [2, 2], [3, 1], [1, 3]]  # as published: 336 x 672, 672 x 336, ...


def mistral(context: int) -> tuple[Any, Any]:
    from transformers import MistralConfig

    tokenizer = vocabulary.llama(["<image>"])
    return _build(tokenizer, MistralConfig(**llava.text(tokenizer, context, heads=2), sliding_window=None))


def vicuna(context: int) -> tuple[Any, Any]:
    from transformers import LlamaConfig

    tokenizer = vocabulary.llama(["<image>"])
    return _build(tokenizer, LlamaConfig(**llava.text(tokenizer, context)))


def _build(tokenizer: Any, text: Any) -> tuple[Any, Any]:
    from transformers import (
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessor,
        LlavaNextProcessor,
    )

    tiles = [[rows * SIDE, columns * SIDE] for rows, columns in GRID]
    config = LlavaNextConfig(
        vision_config=llava.clip(),
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=tiles,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    images = LlavaNextImageProcessor(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=tiles
    )
    processor = LlavaNextProcessor(
        images, tokenizer, patch_size=PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    return LlavaNextForConditionalGeneration(config), processor
