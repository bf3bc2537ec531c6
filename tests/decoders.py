"""Mask decoders with random weights, in the format of vae-oid.npz."""

from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray[Any, Any]]


def weights(depth: int = 12, width: int = 8, ups: tuple[int, ...] = (8, 6, 4, 2), seed: int = 0) -> Arrays:
    """Random arrays with the published names: 512, 128 and (128, 64, 32, 16) are the published widths."""
    draw = np.random.default_rng(seed)
    arrays: Arrays = {"_vq_vae._embedding": draw.normal(size=(128, depth))}

    def layer(name: str, shape: tuple[int, ...], out: int) -> None:
        scale = np.sqrt(2 / (np.prod(shape) / out))
        arrays[f"{name}.weight"] = draw.normal(size=shape) * scale
        arrays[f"{name}.bias"] = draw.normal(size=out) * 0.1

    layer("decoder.0", (width, depth, 1, 1), width)
    for block in (2, 3):
        for at, side in ((0, 3), (2, 3), (4, 1)):
            layer(f"decoder.{block}.net.{at}", (width, width, side, side), width)
    into = width
    for at, out in zip((4, 6, 8, 10), ups, strict=True):
        layer(f"decoder.{at}", (into, out, 4, 4), out)
        into = out
    layer("decoder.12", (1, into, 1, 1), 1)
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def saved(folder: Path, arrays: Arrays) -> str:
    np.savez(folder / "vae-oid.npz", **arrays)
    return str(folder / "vae-oid.npz")
