"""Published models in their full shapes, without weights: `python -m checkpoints.shapes FOLDER`.

Configuration, processor and tokenizer classes, and the safetensors headers are as published; the weights are a hole in
the file, which takes no room on a disk. An engine is started with `load_format: dummy`, which draws them in memory.
The tokenizer knows the tiny vocabulary's words; every other id has a word that only stands for it.
"""

import sys
from pathlib import Path
from typing import Any

from checkpoint_files import write_tensors

from serve.engines import module_names
from serve.engines.vllm.torchvision import repair

from . import vocabulary, weights


def llava_7b() -> tuple[Any, Any]:
    """Return LLaVA-1.5-7B's configuration and processor."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaProcessor

    tokenizer = vocabulary.llama(["<image>"], words=32_000)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
            image_size=336, patch_size=14, projection_dim=768,
        ),
        text_config=LlamaConfig(vocab_size=32_064, max_position_embeddings=4096, pad_token_id=tokenizer.pad_token_id),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        architectures=["LlavaForConditionalGeneration"],
    )  # fmt: skip
    images = CLIPImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    processor = LlavaProcessor(
        images, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    return config, processor


def paligemma_3b_448() -> tuple[Any, Any]:
    """Return PaliGemma-3B-448's configuration and processor."""
    from transformers import GemmaConfig, PaliGemmaConfig, PaliGemmaProcessor, SiglipImageProcessor, SiglipVisionConfig

    places = [f"<loc{i:04d}>" for i in range(1024)] + [f"<seg{i:03d}>" for i in range(128)]
    tokenizer = vocabulary.gemma([*places, "<image>"], words=256_000)
    config = PaliGemmaConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16,
            image_size=448, patch_size=14, vision_use_head=False, projection_dim=2048,
        ),
        text_config=GemmaConfig(
            hidden_size=2048, intermediate_size=16_384, num_hidden_layers=18, num_attention_heads=8,
            num_key_value_heads=1, head_dim=256, vocab_size=257_216, max_position_embeddings=8192,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=2048,
        architectures=["PaliGemmaForConditionalGeneration"],
    )  # fmt: skip
    config.vision_config.num_image_tokens = config.text_config.num_image_tokens = 1024
    images = SiglipImageProcessor(size={"height": 448, "width": 448})
    images.image_seq_length = 1024
    return config, PaliGemmaProcessor(images, tokenizer)


SHAPES = {"llava-1.5-7b": llava_7b, "paligemma-3b-mix-448": paligemma_3b_448}
"""By the name in the catalogue."""


def make(name: str, folder: Path) -> Path:
    """Write one of SHAPES, if the folder does not hold it yet."""
    if (folder / "model.safetensors").exists():
        return folder
    repair()
    import torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    config, processor = SHAPES[name]()
    config.dtype = "bfloat16"
    config.save_pretrained(folder)
    processor.save_pretrained(folder)
    weights.publish_processors(folder)
    with torch.device("meta"):
        model = getattr(transformers, config.architectures[0])(config)
    tied = config.get_text_config().tie_word_embeddings
    shapes = {
        _published(key): tuple(value.shape)
        for key, value in model.state_dict().items()
        if not (tied and key.endswith("lm_head.weight")) and not key.endswith("position_ids")
    }
    write_tensors(folder / "model.safetensors", shapes)
    return folder


def _published(name: str) -> str:
    """Return a tensor's name as the hub's files have it."""
    return f"language_model.{name}" if name.startswith("lm_head.") else module_names.older(name)


if __name__ == "__main__":
    for name in SHAPES:
        print(make(name, Path(sys.argv[1]) / name), flush=True)
