"""Read what a checkpoint's own files say of it: configuration, processor, chat template, README. Loads nothing.

Files of the hub hold little more than what differs from the defaults of their architecture, so any fact may be missing.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from serve.engines import hub

FILES = [
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
    "README.md",
]
"""All that is read here: some kilobytes."""
LARGEST = 2**63
"""Numbers from here on are not counts, lengths or token ids."""
MOST = 16 * 2**20
"""The most bytes of a file that are read: the tokenizer_config.json of some checkpoints has megabytes of tokens."""
HEAD = 64 * 2**10
"""The most characters of a README whose YAML head is read."""
BRACKETS = 500
"""The most opening brackets in it: the parser's time grows with the square of those that stay open."""
PICTURE_LM = ("bagel", "gemma3", "molmo2", "moondream3")
"""Model types whose pictures attend both ways (vLLM's list) and whose configuration does not say so."""

Attention = Literal["causal", "picture", "prompt"]
"""Which tokens see later ones: none, those of a picture each other, or those of the whole prompt."""


@dataclass(frozen=True)
class CheckpointFacts:
    """A checkpoint's facts; None, or empty, where its files do not say.

    architecture: as `architectures` of config.json names it. context: the longest sequence it was made for, in tokens.
    vision: the model type of its vision tower. quantization: `quant_method`, as awq, gptq or fp8. scaling: Llama 4's,
    of attention beyond the original context. chat_template: its text. added_tokens: those that its tokenizer takes
    whole. stop_token_ids: those that end a reply. picture_pixels: least and most pixels that a picture is resized to.
    picture_unit: pixels of the side of a token's square. remote_code: whether it brings Python code of its own.
    licence, languages, base_model and pipeline: of the README's head.
    """

    architecture: str | None = None
    model_type: str | None = None
    context: int | None = None
    parameters: int | None = None
    dtype: str | None = None
    quantization: str | None = None
    takes_images: bool = False
    vision: str | None = None
    attention: Attention = "causal"
    linear_attention: bool = False
    scaling: Mapping[str, float] | None = None
    picture_pixels: tuple[int, int] | None = None
    picture_unit: int | None = None
    picture_size: int | None = None
    chat_template: str | None = None
    added_tokens: frozenset[str] = frozenset()
    stop_token_ids: tuple[int, ...] = ()
    remote_code: bool = False
    licence: str | None = None
    languages: tuple[str, ...] = ()
    base_model: str | None = None
    pipeline: str | None = None


def read_facts(folder: Path) -> CheckpointFacts:
    """Read a folder, in which any file may be missing or broken."""
    config, preprocessor = _json(folder / "config.json"), _json(folder / "preprocessor_config.json")
    processor, tokenizer = _json(folder / "processor_config.json"), _json(folder / "tokenizer_config.json")
    generation = _json(folder / "generation_config.json")
    pictures = preprocessor or _mapping(processor.get("image_processor"))
    text, vision = text_config(config), _mapping(config.get("vision_config"))
    template = _template(folder, tokenizer, processor)
    ends = generation.get("eos_token_id", config.get("eos_token_id", text.get("eos_token_id")))
    readme = _readme(folder / "README.md")
    names = config.get("architectures")
    return CheckpointFacts(
        architecture=_word(names[0]) if isinstance(names, list) and names else None,
        model_type=_word(config.get("model_type")),
        context=_count(text.get("max_position_embeddings")),
        parameters=_parameters(folder, quantized="quantization_config" in config),
        dtype=_word(config.get("dtype") or config.get("torch_dtype") or text.get("dtype") or text.get("torch_dtype")),
        quantization=_word(_mapping(config.get("quantization_config")).get("quant_method")),
        takes_images=bool(vision) or bool(pictures),
        vision=_word(vision.get("model_type")),
        attention=_attention(config, text),
        linear_attention="linear_attention" in _words(text.get("layer_types")) or "linear_num_key_heads" in text,
        scaling=_scaling(_mapping(text.get("rope_parameters") or text.get("rope_scaling"))),
        picture_pixels=_pixels(pictures),
        picture_unit=_unit(pictures, vision),
        picture_size=side_of(vision.get("image_size")),
        chat_template=template,
        added_tokens=frozenset(_added_tokens(tokenizer)),
        stop_token_ids=tuple(end for end in (ends if isinstance(ends, list) else [ends]) if _count(end) is not None),
        remote_code="auto_map" in config,
        licence=_licence(readme),
        languages=tuple(_words(readme.get("language"))),
        base_model=next(_words(readme.get("base_model")), None),
        pipeline=next(_words(readme.get("pipeline_tag")), None),
    )


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a config.json that describes the language model: a part of its own, or all of it."""
    parts = (config.get(name) for name in ("text_config", "llm_config", "language_config"))
    return next((part for part in parts if isinstance(part, Mapping)), config)


def _attention(config: Mapping[str, Any], text: Mapping[str, Any]) -> Attention:
    if config.get("model_type") == "paligemma":
        return "prompt"
    both = text.get("use_bidirectional_attention")
    if config.get("model_type") in PICTURE_LM or config.get("is_mm_prefix_lm") or both == "vision":
        return "picture"
    return "prompt" if both is True or both == "all" else "causal"


def _scaling(rope: Mapping[str, Any]) -> Mapping[str, float] | None:
    original, beta = rope.get("original_max_position_embeddings"), rope.get("llama_4_scaling_beta")
    if not isinstance(original, int) or not isinstance(beta, float):
        return None
    return {"original_max_position_embeddings": original, "beta": beta}


def _template(folder: Path, tokenizer: Mapping[str, Any], processor: Mapping[str, Any]) -> str | None:
    """Return the chat template, in the order of transformers: its own file, the processor's, the tokenizer's."""
    if text := _text(folder / "chat_template.jinja"):
        return text
    for given in (_json(folder / "chat_template.json"), processor, tokenizer):
        template = given.get("chat_template")
        if isinstance(template, list):  # several by name
            named = (each for each in template if isinstance(each, Mapping) and each.get("name") == "default")
            template = next(named, {}).get("template")
        if isinstance(template, str) and template:
            return template
    return None


def _added_tokens(tokenizer: Mapping[str, Any]) -> Iterator[str]:
    for token in _mapping(tokenizer.get("added_tokens_decoder")).values():
        if isinstance(text := _mapping(token).get("content"), str):
            yield text


def _parameters(folder: Path, *, quantized: bool) -> int | None:
    """Return the number of parameters, by the index of the weights or their headers; packed ones cannot be counted."""
    total = _mapping(_json(folder / "model.safetensors.index.json").get("metadata")).get("total_parameters")
    if _count(total) is not None or quantized:
        return _count(total)
    count = 0
    for file in folder.glob("*.safetensors"):
        try:
            count += sum(_product(shape) for shape in hub.shapes(file).values())
        except (OSError, ValueError, KeyError, TypeError):
            return None
    return _count(count) or None


def _product(shape: tuple[int, ...]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count


def _pixels(pictures: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the least and the most pixels of a resized picture, for processors that keep its shape."""
    size = _mapping(pictures.get("size"))
    least = _count(pictures.get("min_pixels")) or _count(size.get("shortest_edge"))
    most = _count(pictures.get("max_pixels")) or _count(size.get("longest_edge"))
    # an edge of such a processor is an area; elsewhere it is a length
    return (least, most) if least and most and "merge_size" in pictures else None


def _unit(pictures: Mapping[str, Any], vision: Mapping[str, Any]) -> int | None:
    patch = side_of(pictures.get("patch_size")) or side_of(vision.get("patch_size"))
    merge = _count(pictures.get("merge_size")) or _count(vision.get("spatial_merge_size")) or 1
    return patch * merge if patch else None


def side_of(value: Any) -> int | None:
    """Return a length in pixels that is given as a number, or as an equal height and width; None otherwise."""
    if isinstance(value, list) and value and value.count(value[0]) == len(value):
        value = value[0]
    return _count(value)


def _licence(readme: Mapping[str, Any]) -> str | None:
    """Return the licence's name. `other` says nothing: then `license_name` has it."""
    licence = next(_words(readme.get("license")), None)
    named = next(_words(readme.get("license_name")), None)
    return named or licence if licence in (None, "other") else licence


def _readme(file: Path) -> Mapping[str, Any]:
    """Return the values of a README's YAML head, which stands between two lines of three hyphens."""
    text = (_text(file) or "")[:HEAD]
    if not text.startswith("---"):
        return {}
    head, closing, _ = text[3:].partition("\n---")
    if head.count("[") + head.count("{") > BRACKETS:
        return {}
    try:
        # of texts alone: SafeLoader raises errors of any kind, and joins mappings into ones that fill the memory
        return _mapping(yaml.load(head, yaml.BaseLoader)) if closing else {}
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}


def _json(file: Path) -> Mapping[str, Any]:
    try:
        return _mapping(json.loads(_text(file) or "{}"))
    except (ValueError, RecursionError):
        return {}


def _text(file: Path) -> str | None:
    try:
        if not file.is_file() or file.stat().st_size > MOST:  # a device has no size and no end
            return None
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _words(value: Any) -> Iterator[str]:
    """Yield the texts of a value that is a text or a list of texts."""
    for word in value if isinstance(value, list) else [value]:
        if isinstance(word, str) and word.strip():
            yield " ".join(word.split())[:200]


def _word(value: Any) -> str | None:
    return next(_words(value), None)


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LARGEST else None
