"""Tiny random checkpoints in the layout that the hub publishes, made in a second each.

Weights are drawn so that the logits are not flat (standard deviation about 3): with a plain 0.02 initialisation real
errors shrink a hundredfold and a parity test proves nothing. Everything is stored as bfloat16, as published.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from serve.engines.torchvision import repair
from serve.image import Image

IMAGE_SIZE, PATCH = 56, 14  # 16 image tokens
WORDS = "a the cat dog red blue circle square is on what color how many detect caption answer en ocr left of and to"


def make(family: str, folder: Path, context: int = 128) -> Path:
    """Write a checkpoint of `llava`, `paligemma` or `paligemma2`. context: the longest sequence, in tokens."""
    repair()
    import torch

    torch.manual_seed(7)
    folder.mkdir(parents=True, exist_ok=True)
    build = _llava if family == "llava" else _paligemma
    model, processor = build(family, context)
    with torch.no_grad():
        _draw(model)
    model.to(torch.bfloat16).save_pretrained(folder)
    _publish(folder)
    processor.save_pretrained(folder)
    return folder


def pictures(count: int) -> list[Image]:
    """Noise in many shapes: wide, tall, tiny, larger than the model's square."""
    rng = np.random.default_rng(3)
    shapes = [(56, 56), (40, 80), (90, 30), (8, 8), (120, 100), (57, 55)]
    return [Image(rng.integers(0, 256, (*shapes[i % len(shapes)], 3), dtype=np.uint8)) for i in range(count)]


def prompts(family: str, count: int) -> list[str]:
    """Texts of several lengths, in the form that the family reads."""
    rng = np.random.default_rng(5)
    words = WORDS.split()
    texts = [" ".join(rng.choice(words, size=2 + 3 * (i % 6))) for i in range(count)]
    return [f"USER: <image>\n{text}\nASSISTANT:" for text in texts] if family == "llava" else texts


def _draw(model: Any) -> None:
    """Fan-in scaled normals; logits with a standard deviation of about 3, and not the last token over and over.

    Gemma's output layer is its embedding, so a token mostly predicts itself unless the layers outweigh the input:
    small embeddings, large layer outputs and a large last norm.
    """
    kind = model.config.text_config.model_type
    for name, weight in model.named_parameters():
        gemma = kind.startswith("gemma") and "language_model" in name  # its norms scale by 1 + weight
        if weight.ndim == 1:
            centre = 1.0 if "norm" in name and name.endswith("weight") and not gemma else 0.0
            if gemma and name.endswith("language_model.norm.weight"):
                centre = 8.0
            if kind == "gemma2" and gemma and ".post_" in name:
                centre = 3.0
            weight.normal_(centre, 0.1)
        elif "embed_tokens" in name:
            weight.normal_(0, 0.03 if gemma else 1)
        elif "lm_head" in name:
            weight.normal_(0, 3 / math.sqrt(weight.shape[-1]))
        else:
            loud = 4 if gemma and ("o_proj" in name or "down_proj" in name) else 1
            weight.normal_(0, loud / math.sqrt(weight[0].numel()))


def _publish(folder: Path) -> None:
    """transformers 5 drops `vision_model.` from what it saves; the hub's files have it, and vLLM asks for it."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = {
        name.replace("vision_tower.", "vision_tower.vision_model.")
        if "vision_tower." in name and ".vision_model." not in name
        else name: tensor
        for name, tensor in load_file(path).items()
    }
    save_file(tensors, path, metadata={"format": "pt"})


def _tokenizer(special: list[str], added: list[str]) -> Any:
    """A sentencepiece-like BPE: spaces are `\u2581`, unknown letters fall back to bytes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    letters = [chr(i) for i in range(33, 127)]
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.normalizer = normalizers.Replace(" ", "\u2581")
    core.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
    core.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=[*special, *bytes_], initial_alphabet=[*letters, "\u2581", "\n"]
    )
    core.train_from_iterator([WORDS] * 20 + ["USER: ASSISTANT:"] * 20, trainer)
    # the trainer made special tokens of the byte pieces; as plain vocabulary they decode to their bytes
    state = json.loads(core.to_str())
    state["added_tokens"] = [entry for entry in state["added_tokens"] if entry["content"] in special]
    core = Tokenizer.from_str(json.dumps(state))
    core.add_tokens([AddedToken(text, normalized=False) for text in added])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token=special[1], eos_token=special[2], pad_token=special[0]
    )


def _llava(family: str, context: int) -> tuple[Any, Any]:
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = _tokenizer(["<pad>", "<s>", "</s>", "<unk>"], ["<image>"])
    from tokenizers import processors

    core = tokenizer.backend_tokenizer
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=2,
            image_size=IMAGE_SIZE, patch_size=PATCH, projection_dim=64,
        ),
        text_config=LlamaConfig(
            hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=4, vocab_size=_round(len(tokenizer)), max_position_embeddings=context,
            bos_token_id=1, eos_token_id=2, pad_token_id=0,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2, vision_feature_select_strategy="default",
    )  # fmt: skip
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=side), tokenizer,
        patch_size=PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip
    return LlavaForConditionalGeneration(config), processor


def _paligemma(family: str, context: int) -> tuple[Any, Any]:
    from transformers import (
        Gemma2Config,
        GemmaConfig,
        PaliGemmaConfig,
        PaliGemmaForConditionalGeneration,
        PaliGemmaProcessor,
        SiglipImageProcessor,
        SiglipVisionConfig,
    )

    places = [f"<loc{i:04d}>" for i in range(1024)] + [f"<seg{i:03d}>" for i in range(128)]
    tokenizer = _tokenizer(["<pad>", "<bos>", "<eos>", "<unk>"], [*places, "<image>"])
    text: dict[str, Any] = dict(
        hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=1,
        head_dim=32, vocab_size=_round(len(tokenizer)), max_position_embeddings=context,
        bos_token_id=1, eos_token_id=2, pad_token_id=0, hidden_activation="gelu_pytorch_tanh",
    )  # fmt: skip
    if family == "paligemma2":
        text.update(query_pre_attn_scalar=32, sliding_window=4096)
    tokens = (IMAGE_SIZE // PATCH) ** 2
    config = PaliGemmaConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
            image_size=IMAGE_SIZE, patch_size=PATCH, vision_use_head=False, projection_dim=128,
        ),
        text_config=Gemma2Config(**text) if family == "paligemma2" else GemmaConfig(**text),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), projection_dim=128,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    config.vision_config.num_image_tokens = config.text_config.num_image_tokens = tokens
    images = SiglipImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    images.image_seq_length = tokens
    return PaliGemmaForConditionalGeneration(config), PaliGemmaProcessor(images, tokenizer)


def _round(size: int) -> int:
    return (size + 63) // 64 * 64
