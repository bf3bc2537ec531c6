"""Writes checkpoints that have a configuration and headers of weights, and holes in place of the weights."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WIDTH = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1}
Shapes = Mapping[str, tuple[int, ...]]


def write_checkpoint(
    folder: Path, config: Mapping[str, Any], tensors: Shapes, *, kind: str = "BF16", **files: Any
) -> Path:
    """Write a checkpoint whose one safetensors file has its full length, and takes no room on a disk.

    files: further JSON files, by name without .json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in {"config": config, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    write_tensors(folder / "model.safetensors", tensors, kind)
    return folder


def write_tensors(file: Path, tensors: Shapes, kind: str = "BF16") -> None:
    entries, end = {}, 0
    for name, shape in tensors.items():
        begin, end = end, end + math.prod(shape) * WIDTH[kind]
        entries[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [begin, end]}
    header = json.dumps(entries).encode()
    with file.open("wb") as opened:
        opened.write(len(header).to_bytes(8, "little") + header)
        opened.truncate(8 + len(header) + end)


def decoder(
    prefix: str,
    *,
    layers: int,
    hidden: int,
    inner: int,
    heads: int,
    kv_heads: int,
    width: int,
    vocabulary: int,
    tied: bool = False,
    biases: bool = False,
    head_norms: bool = False,
) -> dict[str, tuple[int, ...]]:
    """Return the tensors of a language model of Llama's kind."""
    shapes: dict[str, tuple[int, ...]] = {
        f"{prefix}embed_tokens.weight": (vocabulary, hidden),
        f"{prefix}norm.weight": (hidden,),
    }
    if not tied:
        shapes["lm_head.weight"] = (vocabulary, hidden)
    for number in range(layers):
        layer = f"{prefix}layers.{number}."
        rows = {"q": heads * width, "k": kv_heads * width, "v": kv_heads * width}
        shapes |= {f"{layer}self_attn.{name}_proj.weight": (count, hidden) for name, count in rows.items()}
        shapes |= {f"{layer}self_attn.{name}_proj.bias": (count,) for name, count in rows.items() if biases}
        shapes |= {f"{layer}self_attn.{name}_norm.weight": (width,) for name in ("q", "k") if head_norms}
        shapes[f"{layer}self_attn.o_proj.weight"] = (hidden, heads * width)
        shapes |= {f"{layer}mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
        shapes[f"{layer}mlp.down_proj.weight"] = (hidden, inner)
        shapes |= {f"{layer}{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
    return shapes


def parameters(tensors: Shapes) -> int:
    return sum(map(math.prod, tensors.values()))


def filled(tensors: Shapes, name: str, total: int) -> dict[str, tuple[int, ...]]:
    """Return the tensors and one more of this name, so that they have `total` parameters together."""
    rest = total - parameters(tensors)
    assert rest > 0, "the parts have more parameters than the whole"
    return {**tensors, name: (rest,)}
