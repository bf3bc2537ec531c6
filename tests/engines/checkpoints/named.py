"""Tiny random checkpoints of today's architectures, in the layout that their makers publish. Our code names none.

Text is 128 wide with heads of 32, vision 64; the vocabulary has some hundred words. Pictures are small, so that a
prompt has tens of tokens. What each needs was measured (serve/engines/NOTES.md).
"""

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from serve.engines.vllm.torchvision import repair

from . import vocabulary, weights

SIDE, PATCH = 56, 14
BASE = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ARCHITECTURES: dict[str, Callable[[], tuple[Any, Any]]] = {}
"""An architecture's model and processor, as transformers makes them, by the name of its kind."""
SIGLIP = ("gemma3", "gemma3_window", "lfm2_vl", "cohere2_vision", "aya_vision", "granite4_vision")
"""Those whose vision tower's tensors have `vision_model.` in their names on the hub."""


def architecture(build: Callable[[], tuple[Any, Any]]) -> Callable[[], tuple[Any, Any]]:
    ARCHITECTURES[build.__name__] = build
    return build


def make_named(name: str, folder: Path) -> Path:
    """Write one of ARCHITECTURES as the hub's files are written."""
    repair()
    import torch

    torch.manual_seed(7)
    folder.mkdir(parents=True, exist_ok=True)
    model, processor = ARCHITECTURES[name]()
    with torch.no_grad():
        _draw(model)
    model.to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)
    _publish(folder, name)
    return folder


def _publish(folder: Path, name: str) -> None:
    """Rename tensors and split processors as the hub has them."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    if name in SIGLIP:
        tensors = {key.replace("vision_tower.", "vision_tower.vision_model."): value for key, value in tensors.items()}
    if name == "qwen3_vl_moe":  # the hub has experts transposed
        tensors = {k: v.transpose(1, 2).contiguous() if ".experts." in k else v for k, v in tensors.items()}
    save_file(tensors, path, metadata={"format": "pt"})
    whole = json.loads((folder / "processor_config.json").read_text())
    if not name.startswith("gemma4"):
        for part, file in weights.PARTS.items():
            if part in whole:
                values = {"processor_class": whole.get("processor_class"), **whole.pop(part)}
                (folder / file).write_text(json.dumps(values, indent=2))
        (folder / "processor_config.json").write_text(json.dumps(whole, indent=2))


def _draw(model: Any) -> None:
    """Draw fan-in scaled normals, so that logits have a standard deviation of about 3."""
    import torch

    out, embedding = model.get_output_embeddings(), model.get_input_embeddings().weight
    tied = out is not None and out.weight is embedding
    kind = model.config.get_text_config().model_type
    gemma, gemma3 = kind.startswith("gemma"), kind.startswith("gemma3")
    for name, weight in model.named_parameters():
        vision = "vis" in name
        if weight is embedding:
            weight.normal_(0, 0.03 if tied else 1)
        elif name.endswith(("layer_scalar", "per_expert_scale", "router.scale")):
            weight.fill_(1)
        elif name.endswith("A_log"):  # else its state forgets the picture
            weight.uniform_(0.02, 0.5).log_()
        elif name.endswith("dt_bias"):
            weight.normal_(-2, 0.5)
        elif weight.ndim <= 1:
            norm = name.endswith("weight") and ("norm" in name or ".ln" in name) or "gamma" in name or "lambda" in name
            centre = 1.0 if norm and (vision or not gemma3) else 0.0  # Gemma 3's norms scale by 1 + weight
            if kind.startswith("qwen3_5") and not vision and ".linear_attn." not in name:  # scaled by 1 + weight, too
                centre = 0.0
            if tied and name.endswith("norm.weight") and "layers" not in name and not vision:
                centre += 8
            if tied and gemma and ".post_" in name and not vision:
                centre += 2
            if gemma and not gemma3 and ("q_norm" in name or "k_norm" in name):
                # Gemma 4 multiplies attention by 1, not by width ** -0.5
                centre = weight.shape[-1] ** -0.25
            weight.normal_(centre, 0.1)
        elif out is not None and weight is out.weight:
            weight.normal_(0, 3 / math.sqrt(weight.shape[-1]))
        elif ("pos" in name and "embed" in name) or "newline" in name or "cls_token" in name:
            weight.normal_(0, 0.3)
        elif "embed_tokens_per_layer" in name:
            weight.normal_(0, 1)
        elif "experts" in name and weight.ndim == 3:
            weight.normal_(0, 1 / math.sqrt(weight.shape[-1] if "down" in name or gemma else weight.shape[1]))
        else:
            loud = tied and not vision and any(part in name for part in ("o_proj", "down_proj", "out_proj", "w2"))
            weight.normal_(0, (4 if loud else 1) / math.sqrt(weight[0].numel()))
    for name, buffer in model.named_buffers():
        if name.endswith("layer_scalar"):
            buffer.fill_(1)
    for field in ("image_token_id", "video_token_id", "image_token_index", "audio_token_id"):
        token = getattr(model.config, field, None)  # a reply with such a token could not be read by transformers again
        if token is not None and out is not None and (gemma or not tied):
            with torch.no_grad():
                out.weight[token] = 0


def _tokenizer(
    added: list[str],
    *,
    names: Mapping[str, str] | None = None,
    end: str = "<|im_end|>",
    begin: str | None = None,
    kind: str = "Qwen2Tokenizer",
    marks: tuple[str, ...] = (),
) -> Any:
    """Return Qwen's kind of tokenizer with these special tokens, and marks that are none. names: attributes by which
    the processor asks."""
    import transformers
    from tokenizers import AddedToken

    plain = vocabulary.qwen([])
    core = json.loads(plain.backend_tokenizer.to_str())["model"]
    extra = {"extra_special_tokens": dict(names)} if names else {}
    begins = {"bos_token": begin} if begin else {}
    tokenizer = getattr(transformers, kind)(
        vocab=core["vocab"],
        merges=[tuple(merge) for merge in core["merges"]],
        eos_token=end,
        pad_token="<|endoftext|>",
        **extra,
        **begins,
    )
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=True) for text in [*BASE, *added]])
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in marks])
    return tokenizer


def _loop(image: str, *, user: str = "", close: str = "", reply: str = "", begin: str = "") -> str:
    """Return a chat template in the published manner. image: written for an image; user, close: around a message."""
    content = (
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}{{ '" + image + "' }}{% elif part['type'] == 'text' %}{{ part['text'] }}"
        "{% endif %}{% endfor %}{% endif %}"
    )
    return (
        begin + "{% for message in messages %}" + user + content + close + "{% endfor %}"
        "{% if add_generation_prompt %}{{ '" + reply + "' }}{% endif %}"
    )


def _chatml(image: str, begin: str = "") -> str:
    user = "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    return _loop(image, user=user, close="{{ '<|im_end|>\\n' }}", reply="<|im_start|>assistant\\n", begin=begin)


def _text(tokenizer: Any, *, layers: int = 2, **more: Any) -> dict[str, Any]:
    fields: dict[str, Any] = dict(
        hidden_size=128, intermediate_size=128, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=vocabulary.room(tokenizer), max_position_embeddings=2048, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return {**fields, **more}


def _vision(**more: Any) -> dict[str, Any]:
    fields: dict[str, Any] = dict(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE,
        patch_size=PATCH,
    )  # fmt: skip
    return {**fields, **more}


def _square() -> dict[str, int]:
    return {"height": SIDE, "width": SIDE}


# --- Qwen


QWEN = ["object_ref_start", "object_ref_end", "box_start", "box_end", "quad_start", "quad_end", "vision_start",
        "vision_end", "vision_pad", "image_pad", "video_pad"]  # fmt: skip
QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


def _qwen(
    config: str,
    model: str,
    processor: str,
    text: Mapping[str, Any],
    vision: Mapping[str, Any],
    template: str | None = None,
    **tokens_of: Any,
) -> Any:
    """Build one of Qwen's. tokens_of: arguments of _tokenizer."""
    import transformers

    tokenizer = _tokenizer([f"<|{name}|>" for name in QWEN], **tokens_of)
    token = tokenizer.convert_tokens_to_ids
    kinds = ("image_pad", "video_pad", "vision_start", "vision_end")
    tokens = {f"{kind.removesuffix('_pad')}_token_id": token(f"<|{kind}|>") for kind in kinds}
    third = processor == "Qwen3VLProcessor"
    patch = 16 if third else PATCH
    sizes = (65536, 16777216) if third else (3136, 12845056)
    images = transformers.Qwen2VLImageProcessor(
        size=dict(zip(("shortest_edge", "longest_edge"), sizes, strict=True)), patch_size=patch, merge_size=2
    )
    videos = getattr(transformers, "Qwen3VLVideoProcessor" if third else "Qwen2VLVideoProcessor")(patch_size=patch)
    made_config = getattr(transformers, config)(
        text_config=_text(tokenizer, **text), vision_config=dict(vision), **tokens, tie_word_embeddings=False
    )
    kind = getattr(transformers, processor)
    whole = kind(images, tokenizer, videos, chat_template=template or _chatml(QWEN_IMAGE))
    return getattr(transformers, model)(made_config), whole


MROPE = {"rope_type": "default", "type": "mrope", "mrope_section": [4, 6, 6], "rope_theta": 1e6}
MROPE3 = {"rope_type": "default", "mrope_section": [6, 5, 5], "mrope_interleaved": True, "rope_theta": 5e6}
QWEN3_VISION = dict(
    depth=2, hidden_size=64, out_hidden_size=128, num_heads=2, intermediate_size=128, patch_size=16,
    spatial_merge_size=2, temporal_patch_size=2, num_position_embeddings=2304, deepstack_visual_indexes=[0, 1],
)  # fmt: skip


@architecture
def qwen2_vl() -> Any:
    vision = dict(depth=2, embed_dim=64, hidden_size=128, num_heads=2, mlp_ratio=2, patch_size=PATCH)
    text = {"rope_parameters": MROPE}
    return _qwen("Qwen2VLConfig", "Qwen2VLForConditionalGeneration", "Qwen2VLProcessor", text, vision)


@architecture
def qwen2_5_vl() -> Any:
    vision = dict(depth=2, hidden_size=64, out_hidden_size=128, num_heads=2, intermediate_size=128, patch_size=PATCH,
                  window_size=112, fullatt_block_indexes=[1])  # fmt: skip
    text = {"rope_parameters": MROPE}
    return _qwen("Qwen2_5_VLConfig", "Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLProcessor", text, vision)


@architecture
def qwen3_vl() -> Any:
    text = {"head_dim": 32, "rope_parameters": MROPE3}
    return _qwen("Qwen3VLConfig", "Qwen3VLForConditionalGeneration", "Qwen3VLProcessor", text, QWEN3_VISION)


@architecture
def qwen3_vl_moe() -> Any:
    text = dict(head_dim=32, rope_parameters=MROPE3, moe_intermediate_size=96, num_experts=4, num_experts_per_tok=2,
                decoder_sparse_step=1, norm_topk_prob=True, mlp_only_layers=[])  # fmt: skip
    return _qwen("Qwen3VLMoeConfig", "Qwen3VLMoeForConditionalGeneration", "Qwen3VLProcessor", text, QWEN3_VISION)


THINKING = (
    _chatml(QWEN_IMAGE)
    + "{% if add_generation_prompt %}{% if enable_thinking is defined and enable_thinking is false %}"
    + "{{ '<think>\\n\\n</think>\\n\\n' }}{% else %}{{ '<think>\\n' }}{% endif %}{% endif %}"
)


def _qwen3_5(experts: str, **text: Any) -> Any:
    """Build one whose layers are three gated delta nets and an attention, as published."""
    rope = {"rope_type": "default", "mrope_section": [3, 3, 2], "mrope_interleaved": True, "rope_theta": 1e7,
            "partial_rotary_factor": 0.25}  # fmt: skip
    fields = dict(
        head_dim=64, layers=4, layer_types=["linear_attention"] * 3 + ["full_attention"], rope_parameters=rope,
        linear_conv_kernel_dim=4, linear_key_head_dim=64, linear_value_head_dim=64, linear_num_key_heads=2,
        linear_num_value_heads=4, **text,
    )  # fmt: skip
    vision = {key: value for key, value in QWEN3_VISION.items() if key != "deepstack_visual_indexes"}
    kind = f"Qwen3_5{experts}"
    return _qwen(
        f"{kind}Config", f"{kind}ForConditionalGeneration", "Qwen3VLProcessor", fields, vision, THINKING,
        kind="Qwen3_5Tokenizer", marks=("<think>", "</think>"),
    )  # fmt: skip


@architecture
def qwen3_5() -> Any:
    return _qwen3_5("")


@architecture
def qwen3_5_moe() -> Any:
    return _qwen3_5("Moe", moe_intermediate_size=64, shared_expert_intermediate_size=64, num_experts=4,
                    num_experts_per_tok=2)  # fmt: skip


# --- Gemma

GEMMA3_NAMES = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
GEMMA4_NAMES = {
    "image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>", "audio_token": "<|audio|>",
    "boa_token": "<|audio>", "eoa_token": "<audio|>",
}  # fmt: skip


def _gemma_tokenizer(names: Mapping[str, str], added: list[str]) -> Any:
    from tokenizers import AddedToken
    from transformers import GemmaTokenizer

    vocab, merges = vocabulary._sentencepiece(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"], 0)
    for newlines in ("\n\n", "\n\n\n", "\n\n\n\n"):  # vLLM looks them up
        vocab[newlines] = len(vocab)
    merges = [("\n", "\n"), ("\n\n", "\n\n"), ("\n\n", "\n"), *merges]
    tokenizer = GemmaTokenizer(vocab=vocab, merges=merges, extra_special_tokens=dict(names))
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=True) for text in added])
    return tokenizer


def _gemma_template(image: str, begin: str, end: str) -> str:
    role = "{{ 'model' if message['role'] == 'assistant' else message['role'] }}"
    return _loop(image, user=f"{begin}{role}\n", close=f"{end}\n", reply=f"{begin}model\\n", begin="{{ bos_token }}")


def _gemma3(window: int) -> Any:
    """Build it with pictures of 64 tokens. window: of its sliding layers."""
    import transformers

    tokenizer = _gemma_tokenizer(GEMMA3_NAMES, ["<start_of_turn>", "<end_of_turn>"])
    token = tokenizer.convert_tokens_to_ids
    text = dict(
        hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        head_dim=32, query_pre_attn_scalar=32, vocab_size=vocabulary.room(tokenizer), max_position_embeddings=2048,
        sliding_window=window, layer_types=["sliding_attention"] * 3 + ["full_attention"], pad_token_id=0,
        eos_token_id=1, bos_token_id=2,
    )  # fmt: skip
    config = transformers.Gemma3Config(
        text_config=text,
        vision_config=_vision(image_size=224, vision_use_head=False),
        mm_tokens_per_image=64,
        **{name.replace("_token", "_token_index"): token(text) for name, text in GEMMA3_NAMES.items()},
        eos_token_id=[1, token("<end_of_turn>")],
    )
    half = [0.5] * 3
    images = transformers.Gemma3ImageProcessor(size={"height": 224, "width": 224}, image_mean=half, image_std=half)
    template = _gemma_template("<start_of_image>", "<start_of_turn>", "<end_of_turn>")
    processor = transformers.Gemma3Processor(images, tokenizer, chat_template=template, image_seq_length=64)
    return transformers.Gemma3ForConditionalGeneration(config), processor


@architecture
def gemma3() -> Any:
    return _gemma3(512)


@architecture
def gemma3_window() -> Any:
    """Build it with a window that holds a picture, and no prompt."""
    return _gemma3(72)


def _gemma4(*, vision: bool, window: int = 512, **text: Any) -> Any:
    """Build it with pictures of up to 70 tokens, the fewest that it takes. vision: they attend both ways."""
    import transformers

    added = ["<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|think|>", "<|video|>"]
    tokenizer = _gemma_tokenizer(GEMMA4_NAMES, added)
    token = tokenizer.convert_tokens_to_ids
    ids = {name.replace("_token", "_token_id"): token(text) for name, text in GEMMA4_NAMES.items()}
    ids["eoa_token_index"] = ids.pop("eoa_token_id")
    room = vocabulary.room(tokenizer)
    language = dict(
        hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        head_dim=32, global_head_dim=64, vocab_size=room, vocab_size_per_layer_input=room,
        hidden_size_per_layer_input=0 if vision else 16, num_kv_shared_layers=0, max_position_embeddings=2048,
        sliding_window=window, layer_types=["sliding_attention", "full_attention"] * 2, final_logit_softcapping=30.0,
        use_bidirectional_attention="vision" if vision else None, attention_k_eq_v=vision,
        num_global_key_value_heads=1 if vision else None, pad_token_id=0, eos_token_id=1, bos_token_id=2,
    )  # fmt: skip
    tower = dict(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        head_dim=32, patch_size=16, pooling_kernel_size=3, position_embedding_size=1024, standardize=vision,
        default_output_length=70,
    )  # fmt: skip
    ends = [1, token("<turn|>")]
    config = transformers.Gemma4Config(
        text_config={**language, **text}, vision_config=tower, video_token_id=token("<|video|>"), eos_token_id=ends,
        **ids,
    )  # fmt: skip
    processor = transformers.Gemma4Processor(
        transformers.Gemma4AudioFeatureExtractor(),
        transformers.Gemma4ImageProcessor(max_soft_tokens=70),
        tokenizer,
        transformers.Gemma4VideoProcessor(max_soft_tokens=70),
        chat_template=_gemma_template("<|image|>", "<|turn>", "<turn|>"),
        image_seq_length=70,
    )
    return transformers.Gemma4ForConditionalGeneration(config), processor


@architecture
def gemma4() -> Any:
    """Build the smaller kind, whose pictures are causal."""
    return _gemma4(vision=False)


@architecture
def gemma4_shared() -> Any:
    """Build the smaller kind as published: its last layers take the keys and values of earlier ones."""
    return _gemma4(vision=False, num_kv_shared_layers=2)


@architecture
def gemma4_vision() -> Any:
    return _gemma4(vision=True)


@architecture
def gemma4_vision_window() -> Any:
    """Build it with a window that holds a picture, and no prompt."""
    return _gemma4(vision=True, window=72)


@architecture
def gemma4_experts() -> Any:
    return _gemma4(vision=True, enable_moe_block=True, num_experts=4, top_k_experts=2, moe_intermediate_size=32)


# --- InternVL


def _internvl(text: Mapping[str, Any], **vision: Any) -> Any:
    import transformers

    names = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
             "video_token": "<video>"}  # fmt: skip
    tokenizer = _tokenizer([*names.values(), "<ref>", "</ref>", "<box>", "</box>"], names=names)
    config = transformers.InternVLConfig(
        vision_config=_vision(image_size=[SIDE, SIDE], patch_size=[PATCH, PATCH], attention_bias=True, **vision),
        text_config=dict(tie_word_embeddings=False, **_text(tokenizer), **text),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        downsample_ratio=0.5,
        tie_word_embeddings=False,
    )
    images = transformers.GotOcr2ImageProcessor(size=_square(), crop_to_patches=True, min_patches=1, max_patches=4)
    processor = transformers.InternVLProcessor(
        images,
        tokenizer,
        transformers.InternVLVideoProcessor(size=_square()),
        image_seq_length=4,
        chat_template=_chatml("<IMG_CONTEXT>\\n"),
    )
    return transformers.InternVLForConditionalGeneration(config), processor


@architecture
def internvl() -> Any:
    return _internvl({"model_type": "qwen2"})


@architecture
def internvl3_5() -> Any:
    """Build it with Qwen3 and the vision tower of the largest size, which has other norms."""
    return _internvl({"model_type": "qwen3", "head_dim": 32}, norm_type="rms_norm", use_qk_norm=True)


# --- GLM

GLM = ["[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>",
       "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>", "<|image|>", "<|video|>",
       "<think>", "</think>", "<|begin_of_box|>", "<|end_of_box|>"]  # fmt: skip


def _glm(config: str, model: str, processor: str, **text: Any) -> Any:
    import transformers

    tokenizer = _tokenizer(GLM, end="<|endoftext|>")
    token = tokenizer.convert_tokens_to_ids
    tokens = {"image_token_id": token("<|image|>"), "video_token_id": token("<|video|>")}
    for kind in ("image", "video"):
        tokens[f"{kind}_start_token_id"] = token(f"<|begin_of_{kind}|>")
        tokens[f"{kind}_end_token_id"] = token(f"<|end_of_{kind}|>")
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "mrope_section": [4, 2, 2]}
    vision = dict(depth=2, hidden_size=64, num_heads=2, image_size=112, patch_size=PATCH, out_hidden_size=128,
                  intermediate_size=128)  # fmt: skip
    made_config = getattr(transformers, config)(
        text_config=_text(tokenizer, **{"rope_parameters": rope, **text}), vision_config=vision, **tokens
    )
    size = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 400}
    template = "[gMASK]<sop>\n" + _loop(
        "<|begin_of_image|><|image|><|end_of_image|>", user="<|{{ message['role'] }}|>\n", reply="<|assistant|>\\n"
    )
    images, videos = (getattr(transformers, f"{processor}{part}Processor") for part in ("Image", "Video"))
    whole = getattr(transformers, f"{processor}Processor")(
        images(size=size), tokenizer, videos(), chat_template=template
    )
    return getattr(transformers, model)(made_config), whole


@architecture
def glm4v() -> Any:
    return _glm("Glm4vConfig", "Glm4vForConditionalGeneration", "Glm4v", attention_bias=True)


@architecture
def glm4v_without_bias_key() -> Any:
    """Build it without the key `attention_bias`, as transformers alone writes it: vLLM then leaves the biases out."""
    return _glm("Glm4vConfig", "Glm4vForConditionalGeneration", "Glm4v")


@architecture
def glm4v_moe() -> Any:
    experts = dict(
        attention_bias=True, head_dim=32, moe_intermediate_size=64, n_routed_experts=4, n_shared_experts=1,
        num_experts_per_tok=2, n_group=1, topk_group=1, first_k_dense_replace=1, norm_topk_prob=True,
        use_qk_norm=False,
    )  # fmt: skip
    return _glm("Glm4vMoeConfig", "Glm4vMoeForConditionalGeneration", "Glm4v", **experts)


@architecture
def glm46v() -> Any:
    return _glm("Glm46VConfig", "Glm46VForConditionalGeneration", "Glm46V", attention_bias=True)


GLM_OCR_ROPE = {
    "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0, "mrope_section": [8, 4, 4]
}  # fmt: skip


@architecture
def glm_ocr() -> Any:
    return _glm(
        "GlmOcrConfig",
        "GlmOcrForConditionalGeneration",
        "Glm46V",
        intermediate_size=384,
        rope_parameters=GLM_OCR_ROPE,
    )


@architecture
def glm_ocr_narrow() -> Any:
    """Build it with a text as wide as its vision is not: vLLM then reads a third of the merger."""
    return _glm("GlmOcrConfig", "GlmOcrForConditionalGeneration", "Glm46V", rope_parameters=GLM_OCR_ROPE)


# --- SmolVLM, LFM2


def _idefics3(config: str, model: str, kind: str) -> Any:
    import transformers

    added = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"]
    added += [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    names = {"fake_image_token": added[0], "image_token": added[1], "end_of_utterance_token": added[2],
             "global_image_token": added[3]}  # fmt: skip
    tokenizer = _tokenizer(added, names=names if kind == "SmolVLM" else None, end="<end_of_utterance>")
    made_config = getattr(transformers, config)(
        vision_config=_vision(),
        text_config=dict(model_type="llama", **_text(tokenizer)),
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    tile = {"longest_edge": SIDE}
    images = getattr(transformers, f"{kind}ImageProcessor")(
        size={"longest_edge": 224}, max_image_size=tile, do_image_splitting=True
    )
    user = "{{ message['role'] | capitalize }}{% if message['content'][0]['type'] == 'image' %}:{% else %}: {% endif %}"
    template = "<|im_start|>" + _loop("<image>", user=user, close="<end_of_utterance>\n", reply="Assistant:")
    videos = [transformers.SmolVLMVideoProcessor(size=tile, max_image_size=tile)] if kind == "SmolVLM" else []
    processor = getattr(transformers, f"{kind}Processor")(
        images, tokenizer, *videos, image_seq_len=4, chat_template=template
    )
    return getattr(transformers, model)(made_config), processor


@architecture
def smolvlm() -> Any:
    return _idefics3("SmolVLMConfig", "SmolVLMForConditionalGeneration", "SmolVLM")


@architecture
def idefics3() -> Any:
    return _idefics3("Idefics3Config", "Idefics3ForConditionalGeneration", "Idefics3")


@architecture
def lfm2_vl() -> Any:
    import transformers

    names = {"image_token": "<image>", "image_start_token": "<|image_start|>", "image_end_token": "<|image_end|>",
             "image_thumbnail": "<|img_thumbnail|>", "image_thumbnail_token": "<|img_thumbnail|>"}  # fmt: skip
    tiles = [f"<|img_row_{row}_col_{column}|>" for row in range(1, 11) for column in range(1, 11)]
    begin = "<|startoftext|>"
    tokenizer = _tokenizer([begin, *dict.fromkeys(names.values()), *tiles], names=names, begin=begin)
    text = _text(
        tokenizer, layers=4, conv_dim=128, block_dim=128, block_ff_dim=128, conv_dim_out=128,
        block_auto_adjust_ff_dim=False, block_multiple_of=16, full_attn_idxs=[1, 3],
        layer_types=["conv", "full_attention"] * 2, conv_bias=False, conv_L_cache=3, tie_word_embeddings=True,
    )  # fmt: skip
    vision = dict(model_type="siglip2_vision_model", hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                  num_attention_heads=2, num_patches=64, patch_size=16, vision_use_head=False)  # fmt: skip
    config = transformers.Lfm2VlConfig(
        vision_config=vision,
        text_config=dict(model_type="lfm2", **text),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        projector_hidden_size=64,
        downsample_factor=2,
        tie_word_embeddings=True,
    )
    images = (getattr(transformers, "Lfm2VlImageProcessor", None) or transformers.Lfm2VlImageProcessorFast)(
        downsample_factor=2, do_image_splitting=True, min_tiles=2, max_tiles=10, use_thumbnail=True, min_image_tokens=4,
        max_image_tokens=16, encoder_patch_size=16, tile_size=128, max_pixels_tolerance=2.0, max_num_patches=64,
    )  # fmt: skip
    processor = transformers.Lfm2VlProcessor(images, tokenizer, chat_template=_chatml("<image>", begin))
    return transformers.Lfm2VlForConditionalGeneration(config), processor


# --- Mistral, LightOnOCR


def _mistral(kind: str, *, merge: int, tokenizer: Any = None, **text: Any) -> Any:
    import transformers

    tokenizer = tokenizer or vocabulary.llama(["[IMG]", "[IMG_BREAK]", "[IMG_END]"])
    language = dict(head_dim=32, sliding_window=None, tie_word_embeddings=False, **_text(tokenizer))
    image = tokenizer.convert_tokens_to_ids("[IMG]")
    vision = _vision(image_size=336)
    if kind == "pixtral":
        config = transformers.LlavaConfig(
            vision_config=dict(model_type="pixtral", **vision), text_config={"model_type": "mistral", **language},
            image_token_index=image, vision_feature_select_strategy="full", vision_feature_layer=-1, image_seq_length=1,
            tie_word_embeddings=False,
        )  # fmt: skip
        model = transformers.LlavaForConditionalGeneration(config)
    else:
        config = transformers.Mistral3Config(
            vision_config=vision, text_config={"model_type": kind, **language, **text}, image_token_index=image,
            spatial_merge_size=merge, tie_word_embeddings=bool(text.get("tie_word_embeddings")),
        )  # fmt: skip
        model = transformers.Mistral3ForConditionalGeneration(config)
    images = transformers.PixtralImageProcessor(size={"longest_edge": 336}, patch_size=PATCH)
    template = "<s>" + _loop("[IMG]", user="[INST]", close="[/INST]")
    processor = transformers.PixtralProcessor(
        images, tokenizer, patch_size=PATCH, spatial_merge_size=merge, chat_template=template
    )
    return model, processor


@architecture
def mistral3() -> Any:
    return _mistral("mistral", merge=2)


@architecture
def mistral3_tekken() -> Any:
    """Build it with Pixtral's real tokenizer, of 131,072 words, which vLLM's mistral-common ships."""
    import mistral_common
    from transformers import AutoTokenizer

    data, folder = Path(mistral_common.__file__).parent / "data", Path(tempfile.mkdtemp())
    shutil.copy(data / "tekken_240911.json", folder / "tekken.json")  # which stays until the processor is saved
    (folder / "config.json").write_text(json.dumps({"model_type": "mistral3"}))
    return _mistral("mistral", merge=2, tokenizer=AutoTokenizer.from_pretrained(folder), vocab_size=131_072)


@architecture
def pixtral() -> Any:
    return _mistral("pixtral", merge=1)


@architecture
def ministral3() -> Any:
    """Build it with an original context of 64 tokens, beyond which attention is scaled."""
    rope = dict(
        rope_type="yarn", rope_theta=1000000.0, factor=16.0, original_max_position_embeddings=64,
        max_position_embeddings=2048, beta_fast=32.0, beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0,
        llama_4_scaling_beta=0.1,
    )  # fmt: skip
    return _mistral("ministral3", merge=2, tie_word_embeddings=True, rope_parameters=rope)


@architecture
def lighton_ocr() -> Any:
    import transformers

    names = {"image_token": "<|image_pad|>", "image_break_token": "<|vision_pad|>", "image_end_token": "<|vision_end|>"}
    tokenizer = _tokenizer(list(names.values()), names=names)
    config = transformers.LightOnOcrConfig(
        vision_config=_vision(model_type="pixtral", image_size=336),
        text_config=dict(model_type="qwen3", head_dim=32, tie_word_embeddings=True, **_text(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        spatial_merge_size=2,
        tie_word_embeddings=True,
    )
    images = transformers.PixtralImageProcessor(size={"longest_edge": 336}, patch_size=PATCH)
    processor = transformers.LightOnOcrProcessor(
        images, tokenizer, patch_size=PATCH, spatial_merge_size=2, chat_template=_chatml("<|image_pad|>")
    )
    return transformers.LightOnOcrForConditionalGeneration(config), processor


# --- Cohere, Granite


def _cohere(kind: str) -> Any:
    import transformers

    turn = ["<BOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>"]
    image = ["<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>"]
    named = dict(zip(("boi_token", "eoi_token", "image_token", "img_line_break_token"), image, strict=True))
    tiles = ["<image>", "TILE_GLOBAL", *(f"TILE_{number}" for number in range(1, 13))]
    tokenizer = _tokenizer(
        [*turn, *image, *tiles],
        names=named if kind == "cohere2_vision" else None,
        end=turn[2],
        begin=turn[0],
    )
    text = dict(model_type="cohere2", head_dim=32, sliding_window=4096, logit_scale=0.25,
                layer_types=["sliding_attention", "full_attention"], **_text(tokenizer))  # fmt: skip
    vision = _vision(model_type="siglip_vision_model", vision_use_head=False)
    patch = tokenizer.convert_tokens_to_ids("<|IMG_PATCH|>")

    def template(image: str) -> str:
        user, reply = "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>", "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"
        return _loop(image, user=user, close="<|END_OF_TURN_TOKEN|>", reply=reply, begin="<BOS_TOKEN>")

    if kind == "cohere2_vision":
        config = transformers.Cohere2VisionConfig(
            text_config=text, vision_config=vision, downsample_factor=2, image_token_id=patch,
            alignment_intermediate_size=128,
        )  # fmt: skip
        images = transformers.Cohere2VisionImageProcessor(size=_square(), patch_size=2, max_patches=4)
        processor = transformers.Cohere2VisionProcessor(images, tokenizer, chat_template=template("<|IMG_PATCH|>"))
        return transformers.Cohere2VisionForConditionalGeneration(config), processor
    config = transformers.AyaVisionConfig(
        text_config=text, vision_config=vision, downsample_factor=2, image_token_index=patch, vision_feature_layer=-1
    )
    images = transformers.GotOcr2ImageProcessor(size=_square(), crop_to_patches=True, max_patches=4)
    processor = transformers.AyaVisionProcessor(
        images, tokenizer, patch_size=PATCH, img_size=SIDE, downsample_factor=2, chat_template=template("<image>")
    )
    return transformers.AyaVisionForConditionalGeneration(config), processor


@architecture
def cohere2_vision() -> Any:
    return _cohere("cohere2_vision")


@architecture
def aya_vision() -> Any:
    return _cohere("aya_vision")


@architecture
def granite4_vision() -> Any:
    import transformers

    tokenizer = _tokenizer(["<image>", "<|start_of_role|>", "<|end_of_role|>"])
    grid = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE], [3 * SIDE, SIDE], [SIDE, 3 * SIDE]]
    text = dict(
        model_type="granite4_vision_text", embedding_multiplier=1.0, attention_multiplier=0.1767,
        residual_multiplier=0.22, logits_scaling=1.0, tie_word_embeddings=False, **_text(tokenizer, layers=4),
    )  # fmt: skip
    qformer = dict(
        model_type="blip_2_qformer", num_hidden_layers=1, intermediate_size=3072, cross_attention_frequency=1,
        max_position_embeddings=128, use_qformer_text_input=False, hidden_size=64, num_attention_heads=1,
        encoder_hidden_size=64,
    )  # fmt: skip
    config = transformers.Granite4VisionConfig(
        vision_config=_vision(model_type="siglip_vision_model", num_hidden_layers=4, vision_use_head=False),
        text_config=text, image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="full", image_grid_pinpoints=grid, image_seq_length=4, downsample_rate="1/2",
        deepstack_layer_map=[[-1, 0], [-3, 1]], spatial_vision_layer=-1, spatial_target_layers=[2, 3, 2, 3],
        qformer_config=qformer,
    )  # fmt: skip
    images = transformers.LlavaNextImageProcessor(size=_square(), crop_size=_square(), image_grid_pinpoints=grid)
    template = _loop(
        "<image>\\n",
        user="<|start_of_role|>{{ message['role'] }}<|end_of_role|>",
        close="<|endoftext|>\n",
        reply="<|start_of_role|>assistant<|end_of_role|>",
    )
    processor = transformers.Granite4VisionProcessor(
        images, tokenizer, patch_size=PATCH, vision_feature_select_strategy="full", downsample_rate="1/2",
        chat_template=template,
    )  # fmt: skip
    return transformers.Granite4VisionForConditionalGeneration(config), processor


# --- MiniCPM, Llama 4, PaddleOCR, Hunyuan


@architecture
def minicpmv4_6() -> Any:
    import transformers

    names = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>", "image_start_token": "<image>",
             "image_end_token": "</image>", "slice_start_token": "<slice>", "slice_end_token": "</slice>",
             "image_id_start_token": "<image_id>", "image_id_end_token": "</image_id>"}  # fmt: skip
    tokenizer = _tokenizer([*names.values(), "<think>", "</think>"], names=names)
    token = tokenizer.convert_tokens_to_ids
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5, "mrope_section": [4, 2, 2],
            "mrope_interleaved": True}  # fmt: skip
    text = _text(
        tokenizer, layers=4, head_dim=32, linear_key_head_dim=128, linear_value_head_dim=128, linear_num_key_heads=2,
        linear_num_value_heads=4, layer_types=["linear_attention"] * 3 + ["full_attention"], tie_word_embeddings=False,
        rope_parameters=rope,
    )  # fmt: skip
    config = transformers.MiniCPMV4_6Config(
        text_config=dict(model_type="qwen3_5_text", **text),
        vision_config=_vision(num_hidden_layers=4, image_size=112),
        insert_layer_id=1,
        image_size=SIDE,
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
    )
    sizes = {"scale_resolution": 112, "patch_size": PATCH}
    processor = transformers.MiniCPMV4_6Processor(
        image_processor=transformers.MiniCPMV4_6ImageProcessor(max_slice_nums=4, **sizes),
        video_processor=transformers.MiniCPMV4_6VideoProcessor(max_slice_nums=1, **sizes),
        tokenizer=tokenizer,
        chat_template=_chatml("<|image_pad|>"),
    )
    return transformers.MiniCPMV4_6ForConditionalGeneration(config), processor


@architecture
def llama4() -> Any:
    import transformers

    kinds = ["begin_of_text", "eot", "header_start", "header_end", "image", "image_start", "image_end", "patch",
             "tile_x_separator", "tile_y_separator"]  # fmt: skip
    tokenizer = _tokenizer([f"<|{kind}|>" for kind in kinds], end="<|eot|>", begin="<|begin_of_text|>")
    token = tokenizer.convert_tokens_to_ids
    text = _text(
        tokenizer, layers=4, head_dim=32, intermediate_size_mlp=128, num_local_experts=4, num_experts_per_tok=1,
        interleave_moe_layer_step=2, attention_chunk_size=128,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
    )  # fmt: skip
    vision = _vision(intermediate_size=256, vision_output_dim=64, projector_input_dim=64, projector_output_dim=64,
                     pixel_shuffle_ratio=0.5)  # fmt: skip
    config = transformers.Llama4Config(
        text_config=text,
        vision_config=vision,
        boi_token_index=token("<|image_start|>"),
        eoi_token_index=token("<|image_end|>"),
        image_token_index=token("<|patch|>"),
    )
    template = _loop(
        "<|image|>",
        user="{{ '<|header_start|>' + message['role'] + '<|header_end|>\\n\\n' }}",
        close="<|eot|>",
        reply="<|header_start|>assistant<|header_end|>\\n\\n",
        begin="<|begin_of_text|>",
    )
    images = transformers.Llama4ImageProcessor(size=_square(), max_patches=4)
    processor = transformers.Llama4Processor(
        images, tokenizer, patch_size=PATCH, pixel_shuffle_ratio=0.5, chat_template=template
    )
    return transformers.Llama4ForConditionalGeneration(config), processor


@architecture
def paddleocr_vl() -> Any:
    """Build it with a table of 4 x 4 positions, which is stretched for most pictures."""
    import transformers

    names = {"image_token": "<|IMAGE_PLACEHOLDER|>", "video_token": "<|video_pad|>"}
    begin = "<|begin_of_sentence|>"
    tokenizer = _tokenizer([*names.values(), "<|IMAGE_START|>", "<|IMAGE_END|>", begin], names=names, begin=begin)
    token = tokenizer.convert_tokens_to_ids
    rope = {"rope_type": "default", "rope_theta": 500000.0, "mrope_section": [4, 6, 6]}
    config = transformers.PaddleOCRVLConfig(
        text_config=_text(tokenizer, head_dim=32, tie_word_embeddings=False, rope_parameters=rope),
        vision_config=_vision(),
        image_token_id=token("<|IMAGE_PLACEHOLDER|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|IMAGE_START|>"),
        vision_end_token_id=token("<|IMAGE_END|>"),
        tie_word_embeddings=False,
    )
    images = transformers.PaddleOCRVLImageProcessor(size={"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 400})
    template = _loop(
        "<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>",
        user="User: ",
        close="\n",
        reply="Assistant:\\n",
        begin=begin,
    )
    processor = transformers.PaddleOCRVLProcessor(images, tokenizer, chat_template=template)
    return transformers.PaddleOCRVLForConditionalGeneration(config), processor


@architecture
def hunyuan_vl() -> Any:
    import transformers

    kinds = {"image_token": 102, "image_start_token": 100, "image_end_token": 101, "im_newline_token": 103}
    names = {name: f"<\uff5chy_place\u2581holder\u2581no\u2581{number}\uff5c>" for name, number in kinds.items()}
    begin, user = "<\uff5chy_begin\u2581of\u2581sentence\uff5c>", "<\uff5chy_User\uff5c>"
    tokenizer = _tokenizer([*names.values(), begin, user], names=names, begin=begin)
    token = tokenizer.convert_tokens_to_ids
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 4, 4, 4]}
    config = transformers.HunYuanVLConfig(
        text_config=_text(tokenizer, head_dim=32, tie_word_embeddings=True, rope_parameters=rope),
        vision_config=dict(
            hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
            out_hidden_size=128, text_hidden_size=128, patch_size=16, max_image_size=128, min_image_size=32,
            img_max_token_num=64,
        ),
        image_token_id=token(names["image_token"]),
        im_start_id=token(names["image_start_token"]),
        im_end_id=token(names["image_end_token"]),
        im_newline_id=token(names["im_newline_token"]),
    )  # fmt: skip
    images = transformers.HunYuanVLImageProcessor(size={"shortest_edge": 32 * 32, "longest_edge": 256 * 256})
    place = names["image_start_token"] + names["image_token"] + names["image_end_token"]
    template = _loop(place, close=user, begin=begin)
    processor = transformers.HunYuanVLProcessor(images, tokenizer, chat_template=template)
    return transformers.HunYuanVLForConditionalGeneration(config), processor


SERVED = [name for name in ARCHITECTURES if name not in ("glm4v_without_bias_key", "glm_ocr_narrow")]
