"""Write a trained toy in the published layout: `python -m serve.toy.training.export llava-b serve/toy/llava-b`.

Weight names, configuration files and their fields follow llava-hf/llava-1.5-7b-hf and google/paligemma-3b-mix-224, so
that programs which load those load these.
"""

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from serve.toy.training import nets, tokenizer
from serve.toy.training.lessons import WORK
from serve.toy.training.recipes import RECIPES, Recipe
from serve.toy.training.train import new_net
from serve.toy.varied.names import LARGEST_NUMBER, WRITTEN

HERE = Path(__file__).parents[1]
CONTEXT = 512

# As in the published template: in each turn the images come first, then the text.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'user' %}{{ 'USER: ' }}{% elif message.role == 'assistant' %}{{ 'ASSISTANT: ' }}{% endif %}"
    "{% if message.content is string %}{{ message.content + ' ' }}{% else %}"
    "{% for part in message.content if part.type == 'image' %}{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message.content if part.type == 'text' %}{{ part.text + ' ' }}{% endfor %}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def export(net: nets.Net, name: str, out: Path) -> None:
    """Write a toy's folder: weights in bfloat16, configuration, processor, tokenizer, and PaliGemma's mask decoder."""
    recipe = RECIPES[name]
    family = recipe.family
    out.mkdir(parents=True, exist_ok=True)
    language = net.language_model
    weights = {name: tensor for name, tensor in net.state_dict().items() if not name.endswith(".wave")}
    weights["language_model.model.embed_tokens.weight"] = language.model.embed_tokens()
    if language.lm_head is not None:
        weights["language_model.lm_head.weight"] = language.lm_head()
    first = "multi_modal_projector.linear.weight" if net.gemma else "multi_modal_projector.linear_1.weight"
    weights[first] = weights[first] * weights.pop("feature_scale")
    stored = {name: tensor.detach().cpu().to(torch.bfloat16).contiguous() for name, tensor in weights.items()}
    save_file(stored, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)  # safetensors lets only the owner read
    tokens = tokenizer.build_tokenizer(family)
    tokens.save(str(out / "tokenizer.json"))
    files = _llava(recipe) if family == "llava" else _paligemma(recipe)
    for file, content in files.items():
        (out / file).write_text(json.dumps(content, indent=2) + "\n")
    (out / "README.md").write_text(_card(name, sum(tensor.numel() for tensor in stored.values())))
    if family == "paligemma":
        shutil.copyfile(HERE / "vae-oid.npz", out / "vae-oid.npz")


def load_net(folder: Path) -> nets.Net:
    """Load an exported toy as a Net in float32; the embeddings of coordinates are ordinary rows there."""
    weights = load_file(folder / "model.safetensors")
    family = "llava" if "language_model.lm_head.weight" in weights else "paligemma"
    config = json.loads((folder / "config.json").read_text())
    text = config["text_config"]
    fields = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers")
    size = nets.TextSize(*(text[field] for field in fields))
    side = config["vision_config"]["image_size"]
    tower = config["vision_config"]
    layers = tower["num_hidden_layers"] - (family == "llava")
    vision = nets.VisionSize(tower["hidden_size"], tower["intermediate_size"], layers)
    net = nets.Net(family, text["vocab_size"], size, side, vision)
    net.load_state_dict({name: tensor.float() for name, tensor in weights.items()} | {"feature_scale": torch.ones(())})
    return net.eval()


def _ids(recipe: Recipe) -> dict[str, int]:
    family = recipe.family
    tokens = tokenizer.build_tokenizer(family)
    bos, eos = ("<s>", "</s>") if family == "llava" else ("<bos>", "<eos>")
    special = {"bos": bos, "eos": eos, "pad": "<pad>", "image": "<image>"}
    return {name: tokenizer.id_of(tokens, token) for name, token in special.items()}


def _patches(recipe: Recipe) -> int:
    return (recipe.side // nets.PATCH) ** 2


def _vision(recipe: Recipe) -> dict[str, Any]:
    family = recipe.family
    return {
        "model_type": "clip_vision_model" if family == "llava" else "siglip_vision_model",
        "hidden_size": recipe.vision.width,
        "intermediate_size": recipe.vision.mlp,
        "num_hidden_layers": recipe.vision.layers + (family == "llava"),
        "num_attention_heads": recipe.vision.heads,
        "image_size": recipe.side,
        "patch_size": nets.PATCH,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-5 if family == "llava" else 1e-6,
        "projection_dim": recipe.vision.width if family == "llava" else recipe.size.width,
    }


def _text(recipe: Recipe, ids: dict[str, int]) -> dict[str, Any]:
    return {
        "hidden_size": recipe.size.width,
        "intermediate_size": recipe.size.mlp,
        "num_hidden_layers": recipe.size.layers,
        "num_attention_heads": recipe.size.heads,
        "num_key_value_heads": recipe.size.kv_heads,
        "head_dim": nets.HEAD,
        "vocab_size": tokenizer.size(recipe.family),
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "bos_token_id": ids["bos"],
        "eos_token_id": ids["eos"],
        "pad_token_id": ids["pad"],
        "torch_dtype": "bfloat16",
    }


def _shared(ids: dict[str, int]) -> dict[str, Any]:
    numbers = {"bos_token_id": ids["bos"], "eos_token_id": ids["eos"], "pad_token_id": ids["pad"]}
    return {"generation_config.json": {"_from_model_config": True, **numbers}}


def _llava(recipe: Recipe) -> dict[str, Any]:
    ids = _ids(recipe)
    config = {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": ids["image"],
        "image_seq_length": _patches(recipe),
        "pad_token_id": ids["pad"],
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "text_config": {
            **_text(recipe, ids),
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "tie_word_embeddings": False,
        },
        "vision_config": _vision(recipe),
    }
    square = {"height": recipe.side, "width": recipe.side}
    image_processor = {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "LlavaProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": recipe.side},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": nets.CLIP_MEAN,
        "image_std": nets.CLIP_STD,
    }
    processor = {
        "processor_class": "LlavaProcessor",
        "image_token": "<image>",
        "patch_size": nets.PATCH,
        "num_additional_image_tokens": 1,
        "vision_feature_select_strategy": "default",
    }
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return {
        "config.json": config,
        "preprocessor_config.json": image_processor,
        "processor_config.json": processor,
        "tokenizer_config.json": _tokenizer(special, "LlavaProcessor", add_bos=True),
        "special_tokens_map.json": {**special, "image_token": "<image>"},
        "chat_template.json": {"chat_template": CHAT_TEMPLATE},
        **_shared(ids),
    }


def _paligemma(recipe: Recipe) -> dict[str, Any]:
    ids = _ids(recipe)
    config = {
        "architectures": ["PaliGemmaForConditionalGeneration"],
        "model_type": "paligemma",
        "bos_token_id": ids["bos"],
        "eos_token_id": ids["eos"],
        "pad_token_id": ids["pad"],
        "image_token_index": ids["image"],
        "hidden_size": recipe.size.width,
        "projection_dim": recipe.size.width,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "text_config": {
            **_text(recipe, ids),
            "model_type": "gemma",
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh",
            "num_image_tokens": _patches(recipe),
            "tie_word_embeddings": True,
        },
        "vision_config": {**_vision(recipe), "num_image_tokens": _patches(recipe), "vision_use_head": False},
    }
    image_processor = {
        "image_processor_type": "SiglipImageProcessor",
        "processor_class": "PaliGemmaProcessor",
        "image_seq_length": _patches(recipe),
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": recipe.side, "width": recipe.side},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    special = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return {
        "config.json": config,
        "preprocessor_config.json": image_processor,
        "tokenizer_config.json": _tokenizer(special, "PaliGemmaProcessor", add_bos=False),
        "special_tokens_map.json": {**special, "image_token": "<image>"},
        **_shared(ids),
    }


def _tokenizer(special: Mapping[str, str], processor: str, *, add_bos: bool) -> dict[str, Any]:
    """Return a tokenizer's config. special: its special tokens by their names in it."""
    return {
        **special,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "processor_class": processor,
        "extra_special_tokens": {"image_token": "<image>"},
        "image_token": "<image>",
        "model_max_length": CONTEXT,
        "padding_side": "left",
        "add_bos_token": add_bos,
        "clean_up_tokenization_spaces": False,
    }


def _card(name: str, parameters: int) -> str:
    recipe = RECIPES[name]
    kind = "LLaVA-1.5" if recipe.family == "llava" else "PaliGemma"
    knows = f"ten shapes, twelve colours, {len(WRITTEN)} words and the\nnumbers 0 to {LARGEST_NUMBER},"
    knows += " and nothing else about the world: on a photograph it talks nonsense. It shares no weights with the"
    return f"""# toy {kind}

**A toy.** The {kind} architecture with {parameters:,} parameters, trained from nothing on drawn shapes by
`python -m serve.toy.training.train {name}`. It knows {knows}
published {kind}. Weights are stored in bfloat16; compute in float32 where bfloat16 is slow.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("toy", choices=sorted(RECIPES))
    parser.add_argument("out", type=Path)
    parser.add_argument("--work", type=Path, default=WORK, help="where training was")
    parser.add_argument("--untrained", action="store_true", help="random weights, for tests of form alone")
    options = parser.parse_args()
    torch.manual_seed(0)
    net = new_net(RECIPES[options.toy], RECIPES[options.toy].side)
    if not options.untrained:
        net.load_state_dict(torch.load(options.work / f"{options.toy}.pt", map_location="cpu")["net"])
    export(net, options.toy, options.out)


if __name__ == "__main__":
    main()
