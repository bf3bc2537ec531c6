"""PaliGemma: SigLIP and Gemma as a prefix LM; PaliGemma 2: on Gemma 2, with soft caps and sliding windows."""

from typing import Any

from . import vocabulary

SIDE, PATCH = 56, 14  # 16 image tokens
WINDOW = 8  # shorter than every prompt, as 4096 is at 896 pixels


def gemma(context: int) -> tuple[Any, Any]:
    from transformers import GemmaConfig

    return _build(GemmaConfig, context)


def gemma2(context: int) -> tuple[Any, Any]:
    from transformers import Gemma2Config

    return _build(Gemma2Config, context, query_pre_attn_scalar=32, sliding_window=4096)


def gemma2_window(context: int) -> tuple[Any, Any]:
    from transformers import Gemma2Config

    return _build(Gemma2Config, context, query_pre_attn_scalar=32, sliding_window=WINDOW)


def _build(kind: Any, context: int, **more: Any) -> tuple[Any, Any]:
    from transformers import (
        PaliGemmaConfig,
        PaliGemmaForConditionalGeneration,
        PaliGemmaProcessor,
        SiglipImageProcessor,
        SiglipVisionConfig,
    )

    places = [f"<loc{i:04d}>" for i in range(1024)] + [f"<seg{i:03d}>" for i in range(128)]
    tokenizer = vocabulary.gemma([*places, "<image>"])
    tokens = (SIDE // PATCH) ** 2
    ends = dict(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    config = PaliGemmaConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
            image_size=SIDE, patch_size=PATCH, vision_use_head=False, projection_dim=128,
        ),
        text_config=kind(
            hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=1,
            head_dim=32, vocab_size=vocabulary.room(tokenizer), max_position_embeddings=context,
            hidden_activation="gelu_pytorch_tanh", **ends, **more,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), projection_dim=128, **ends,
    )  # fmt: skip
    config.vision_config.num_image_tokens = config.text_config.num_image_tokens = tokens
    images = SiglipImageProcessor(size={"height": SIDE, "width": SIDE})
    images.image_seq_length = tokens
    return PaliGemmaForConditionalGeneration(config), PaliGemmaProcessor(images, tokenizer)
