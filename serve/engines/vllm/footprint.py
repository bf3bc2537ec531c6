"""Compute the memory of a vLLM engine from its checkpoint's description, before anything is loaded.

What a GPU must hold: the weights, what a step needs beside them (activations, the pictures' tokens), CUDA graphs, CUDA
itself, and the keys and values of the requests that run. vLLM measures the last part by a run with dummy inputs, which
goes wrong where two engines share a GPU and start at once (vllm#55827). The formulas follow vLLM 0.32's source, their
factors were fitted to published start-up logs (tests/engines/vllm/test_footprint.py names them). No GPU was measured.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serve.engines.adapters import DECODER
from serve.engines.checkpoint_facts import side_of
from serve.engines.description import Description

GIB = 1 << 30
UTILIZATION = 0.92
"""The part of a GPU that vLLM uses, where nothing else is set."""
WORDS = 256
"""Tokens of a question and its answer, beside the picture's."""
CONTEXT = int(0.6 * GIB)
"""Bytes of a process's CUDA context and libraries on a GPU: 0.53 and 0.07 GiB on an A100."""
GRAPH = int(0.3 * (1 << 20))
"""Bytes of a recorded CUDA graph, for each layer."""
SAMPLER = 16
"""Bytes for each logit of a step: as bfloat16 and float32, its probability and noise."""
PROCESS = int(0.95 * GIB)
"""Bytes of a replica and its engine on a CPU, two processes, before any weight (measured: deployments/NOTES.md)."""
FLOATS = {"F64", "F32", "F16", "BF16"}
STORED = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
BYTES = {"float32": 4, "float": 4, "bfloat16": 2, "float16": 2, "half": 2}
VISION = ("vision_tower.", "vision_model.", "visual.", "vision_embed_tokens.", "mlp1.", "multi_modal_projector.")
LARGE = 70 * GIB
"""A GPU from this size on takes larger steps by vLLM's defaults; an A100 does not, and is then planned too large."""


@dataclass(frozen=True)
class Settings:
    """The engine arguments that decide its memory. gpu: on a GPU, else on a CPU."""

    gpu: bool
    dtype: str
    context: int
    """The longest request in tokens: `max_model_len`."""
    step_tokens: int
    """Tokens of a step: `max_num_batched_tokens`."""
    requests: int
    """Requests of a step: `max_num_seqs`."""
    gpus: int = 1
    """GPUs that share the model: `tensor_parallel_size`."""
    graphs: bool = True
    profiles_pictures: bool = True
    adapter_rank: int = 0
    adapters: int = 0


@dataclass(frozen=True)
class Footprint:
    """Bytes of an engine on each of its GPUs, or in main memory."""

    weights: int
    vision: int
    """The part of the weights that is the vision tower's and the projector's."""
    adapters: int
    activations: int
    graphs: int
    process: int
    """CUDA itself, or Python and its libraries."""
    token: int
    """Keys and values of one token."""
    window_token: int
    """The part of `token` that is kept for the last `window` tokens only."""
    window: int
    picture: int
    """Tokens of the largest picture; 0 for a model without pictures."""
    context: int

    @property
    def fixed(self) -> int:
        """Return the bytes that do not depend on the requests."""
        return self.weights + self.adapters + self.activations + self.graphs + self.process

    @property
    def least(self) -> int:
        """Return the fewest bytes with which it can serve: one request of full length at a time."""
        return self.fixed + self.cache(self.context)

    @property
    def request(self) -> int:
        """Return the bytes of the keys and values of a picture, a question and an answer."""
        return self.cache(min(self.context, self.picture + WORDS))

    def cache(self, tokens: int) -> int:
        """Return the bytes of the keys and values of a request of so many tokens."""
        return (self.token - self.window_token) * tokens + self.window_token * min(tokens, self.window)


def settings(chosen: Mapping[str, Any], description: Description, gpu_bytes: int | None) -> Settings:
    """Return the settings that follow from engine arguments and vLLM's defaults.

    gpu_bytes: the memory of each GPU; None for a CPU.
    """
    largest = _text(description.config).get("max_position_embeddings", 4096)
    context = int(chosen.get("max_model_len") or largest)
    tokens, requests = (2048, 128) if gpu_bytes is None else (8192, 1024) if gpu_bytes >= LARGE else (2048, 256)
    tokens = int(chosen.get("max_num_batched_tokens") or tokens)
    if chosen.get("enable_chunked_prefill") is False:
        tokens = max(tokens, context)
    return Settings(
        gpu=gpu_bytes is not None,
        dtype=str(chosen.get("dtype", "auto")),
        context=context,
        step_tokens=tokens,
        requests=min(tokens, int(chosen.get("max_num_seqs") or requests)),
        gpus=int(chosen.get("tensor_parallel_size", 1)) * int(chosen.get("pipeline_parallel_size", 1)),
        graphs=gpu_bytes is not None and not chosen.get("enforce_eager", False),
        profiles_pictures=not chosen.get("skip_mm_profiling", False),
        adapter_rank=int(chosen.get("max_lora_rank", 0)) if chosen.get("enable_lora") else 0,
        adapters=int(chosen.get("max_loras", 0)),
    )


def footprint(description: Description, given: Settings) -> Footprint:
    """Compute an engine's memory. Bytes of each GPU, where several share the model."""
    width = BYTES.get(given.dtype, 2)
    language = _Tower(description, vision=False)
    tower = _Tower(description, vision=True)
    token = -(-language.token * width // given.gpus)
    picture = picture_tokens(description)
    return Footprint(
        weights=-(-(language.bytes(width) + tower.bytes(width)) // given.gpus),
        vision=-(-tower.bytes(width) // given.gpus),
        adapters=given.adapters * given.adapter_rank * language.adapter_widths * width // given.gpus,
        activations=_activations(language, tower, picture, given, width),
        graphs=_graphs(given.requests) * language.layers * GRAPH if given.graphs else 0,
        process=CONTEXT if given.gpu else PROCESS,
        token=token,
        window_token=int(token * _sliding(description.config, language.layers)),
        window=int(_text(description.config).get("sliding_window") or 0),
        picture=picture,
        context=given.context,
    )


def awake_part(gpu_bytes: int | None, sleepers: int) -> float:
    """Return the part of a GPU's usable bytes that sleeping engines leave: each keeps its CUDA context. 1 on a CPU."""
    return 1.0 if gpu_bytes is None else max(0.0, 1 - sleepers * CONTEXT / (UTILIZATION * gpu_bytes))


def requests_at_once(held: Footprint, cache: int) -> tuple[int, int]:
    """Return how many requests with a picture a cache of so many bytes holds at a time, and how many of full length."""
    return cache // max(1, held.request), cache // max(1, held.cache(held.context))


class _Tower:
    """A language model or a vision tower, by the shapes of its tensors: the configuration leaves out its defaults."""

    def __init__(self, description: Description, *, vision: bool) -> None:
        self.tensors = {name: entry for name, entry in description.tensors.items() if _in_vision(name) == vision}
        rows = {name: shape for name, (_, shape) in self.tensors.items() if len(shape) >= 2}
        keys = [shape for name, shape in rows.items() if name.endswith("k_proj.weight")]
        config = description.config.get("vision_config", {}) if vision else _text(description.config)
        heads = int(config.get("num_attention_heads", 32))
        self.layers = len(keys) or int(config.get("num_hidden_layers") or config.get("depth") or 32)
        self.hidden = int(config.get("hidden_size") or (keys[0][1] if keys else 4096))
        self.inner = max((s[0] for n, s in rows.items() if n.endswith(("up_proj.weight", "fc1.weight"))), default=0)
        self.inner = self.inner or int(config.get("intermediate_size") or 4 * self.hidden)
        key_width = int(config.get("num_key_value_heads") or heads) * int(
            config.get("head_dim") or self.hidden // heads
        )
        self.token = 2 * (sum(shape[0] for shape in keys) if keys else self.layers * key_width)
        """Numbers that a token's keys and values consist of, in all layers."""
        self.vocabulary = max((s[0] for n, s in rows.items() if "embed_tokens" in n or "lm_head" in n), default=0)
        decoder = (shape for name, shape in rows.items() if name.split(".")[-2] in DECODER)
        self.adapter_widths = sum(shape[0] + shape[1] for shape in decoder)
        """Numbers of an adapter of rank 1 on every linear layer."""

    def bytes(self, width: int) -> int:
        """Return the bytes of the weights in memory, where a float has `width` bytes and a quantised number its own."""
        return sum(
            math.prod(shape) * (width if kind in FLOATS else STORED.get(kind, 1))
            for kind, shape in self.tensors.values()
        )


def _activations(language: _Tower, tower: _Tower, picture: int, given: Settings, width: int) -> int:
    """Return the bytes that a step needs beside the weights: the most of language, pictures and sampling."""

    def values(part: _Tower, positions: int) -> int:
        return positions * (3 * part.inner + 4 * part.hidden) * width

    budget = max(given.step_tokens, picture)
    sampling = given.requests * language.vocabulary * SAMPLER
    steps = [values(language, given.step_tokens) // given.gpus, sampling]
    kept = 0
    if picture and given.profiles_pictures and given.gpu:
        steps.append(values(tower, max(1, budget // picture) * picture * _patches_a_token(tower)))
        kept = budget * language.hidden * width
    return max(steps) + kept


def _patches_a_token(tower: _Tower) -> int:
    """Return how many patches the tower merges to a token: Qwen's mergers take 2 x 2."""
    return 4 if any("merger." in name for name in tower.tensors) else 1


def _graphs(requests: int) -> int:
    """Return how many CUDA graphs vLLM records: for steps of up to 512 tokens, and for steps of replies alone."""
    most = min(2 * requests, 512)
    sizes = [size for size in (1, 2, 4, *range(8, 256, 8), *range(256, 513, 16)) if size <= most]
    return len(sizes) + len([size for size in sizes if size <= requests])


def picture_tokens(description: Description) -> int:
    """Return the tokens of the largest picture; 0 for a model without a vision tower."""
    config, vision = description.config, description.config.get("vision_config")
    if not isinstance(vision, Mapping) or not any(map(_in_vision, description.tensors)):
        return 0
    for fixed in ("mm_tokens_per_image", "vision_soft_tokens_per_image"):
        if isinstance(config.get(fixed), int):
            return int(config[fixed])
    patch = side_of(vision.get("patch_size")) or 14
    if "spatial_merge_size" in vision:
        return _most_pixels(description.processor) // (patch * int(vision["spatial_merge_size"])) ** 2
    side = (side_of(vision.get("image_size")) or 336) // patch
    if "downsample_ratio" in config:  # InternVL: up to twelve tiles and an overview
        most = config.get("max_dynamic_patch") or description.processor.get("max_patches") or 12
        tiles = int(most) + bool(config.get("use_thumbnail", True))
        return int(side * side * float(config["downsample_ratio"]) ** 2) * tiles
    if config.get("image_grid_pinpoints"):
        return _tiled(side, config["image_grid_pinpoints"], str(config.get("vision_aspect_ratio", "")), side * patch)
    return side * side


def _most_pixels(processor: Mapping[str, Any]) -> int:
    size = processor.get("size") or {}
    return int(processor.get("max_pixels") or size.get("longest_edge") or 28 * 28 * 1280)


def _tiled(side: int, grids: Iterable[Sequence[int]], aspect: str, pixels: int) -> int:
    """Return the most tokens of an overview and tiles, of side x side each, and an end for each row of the tiles.

    Of `anyres_max_9` nine tiles are left of a larger picture.
    """
    most = int(aspect.rsplit("_", 1)[-1]) if aspect.startswith("anyres_max_") else math.inf
    sizes = ((height // pixels, width // pixels) for height, width in grids)
    return side * side + max(int(side * side * min(rows * columns, most)) + rows * side for rows, columns in sizes)


def _sliding(config: Mapping[str, Any], layers: int) -> float:
    """Return the part of the layers that see a window only. Where the file names none, all see everything."""
    text = _text(config)
    if not text.get("sliding_window"):
        return 0.0
    if isinstance(kinds := text.get("layer_types"), list):
        return kinds.count("sliding_attention") / max(1, len(kinds))
    every = text.get("sliding_window_pattern")
    return 1 - (layers // int(every)) / layers if every and layers else 0.0


def _in_vision(name: str) -> bool:
    return name.removeprefix("model.").startswith(VISION)


def _text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    text = config.get("text_config") or config.get("llm_config")
    return text if isinstance(text, Mapping) else config
