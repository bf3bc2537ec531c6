"""LLaVA-1.5: CLIP and Vicuna."""

from typing import Any

from . import vocabulary

SIDE, PATCH = 56, 14  # 16 image tokens


def clip(side: int = SIDE, patch: int = PATCH) -> Any:
    """Return the vision tower's config of every LLaVA but OneVision; features are the last but one layer's."""
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=2,
        image_size=side, patch_size=patch, projection_dim=64,
    )  # fmt: skip


def text(tokenizer: Any, context: int, heads: int = 4) -> dict[str, Any]:
    """Arguments of a Llama, Mistral or Qwen2 configuration. heads: of keys and values, of 4 in all."""
    return dict(
        hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=heads, vocab_size=vocabulary.room(tokenizer), max_position_embeddings=context,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip


def build(context: int) -> tuple[Any, Any]:
    from transformers import (
        CLIPImageProcessor,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = vocabulary.llama(["<image>"])
    config = LlavaConfig(
        vision_config=clip(),
        text_config=LlamaConfig(**text(tokenizer, context)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    images = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    processor = LlavaProcessor(
        images, tokenizer, patch_size=PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    return LlavaForConditionalGeneration(config), processor
