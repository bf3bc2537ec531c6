"""PaliGemma's mask decoder in numpy: sixteen `<segNNN>` codes -> mask (arXiv 2407.07726; VQ-VAE of arXiv 2301.02229).

The weights are `vae-oid.npz` as published with big_vision, in PyTorch's layout. Widths are those of the arrays, so
a smaller decoder in the same format works as well.
"""

import functools
import os
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from serve.errors import ModelError
from serve.media.masks import Mask, Window

Array = np.ndarray[Any, np.dtype[np.float32]]
Layer = tuple[Array, Array]

VARIABLE = "DIPTYCH_MASK_DECODER"
CODES = 128  # the tokenizer has <seg000> to <seg127>
SIDE = 64  # 4 x 4 codes, doubled four times
ADVICE = (
    f"Set {VARIABLE} to the file vae-oid.npz (published at gs://big_vision/paligemma/vae-oid.npz) or to a file on the "
    "Hugging Face hub, such as spaces/google/paligemma-hf/vae-oid.npz."
)
_ON_HUB = re.compile(r"(?:(spaces|datasets)/)?([\w.-]+/[\w.-]+)/([^/].*\.npz)")


@dataclass(frozen=True, eq=False)
class MaskDecoder:
    """The decoder's arrays. codebook: [128, d]. A layer is (weight, bias).

    blocks: two residual blocks of three convolutions. ups: four transposed convolutions that double height and width.
    """

    codebook: Array
    first: Layer
    blocks: tuple[tuple[Layer, Layer, Layer], ...]
    ups: tuple[Layer, ...]
    last: Layer

    def __call__(self, codes: np.ndarray[Any, Any]) -> Array:
        """Decode codes, int [n, 16] of 0..127, into masks, float32 [n, 64, 64], about -1 (outside) to 1 (inside)."""
        x = self.codebook[codes.reshape(-1, 4, 4)]  # channels last, so that a convolution is a matrix product
        x = _relu(_convolve(x, self.first))
        for first, second, third in self.blocks:
            x = x + _convolve(_relu(_convolve(_relu(_convolve(x, first)), second)), third)
        for layer in self.ups:
            x = _relu(_upsample(x, layer))
        return _convolve(x, self.last)[..., 0]


def paste(mask: Array, box: tuple[float, float, float, float], width: int, height: int) -> Mask | None:
    """Return the decoder's mask [64, 64] as the mask [height, width] of the image; None for a box below one pixel.

    box: x0, y0, x1, y1 in fractions of the image.
    """
    window = pixel_window(box, width, height)
    if window is None:
        return None
    whole = np.zeros((height, width), np.bool_)
    whole[window.top : window.bottom, window.left : window.right] = enlarge(mask, window)
    return whole


def pixel_window(box: tuple[float, float, float, float], width: int, height: int) -> Window | None:
    """Return a box x0, y0, x1, y1, in fractions of the image, in whole pixels, rounded down as in big_vision's
    evaluator; None if that leaves no pixel."""
    x0, y0, x1, y1 = int(box[0] * width), int(box[1] * height), int(box[2] * width), int(box[3] * height)
    return Window(x0, y0, x1, y1) if x1 > x0 and y1 > y0 else None


def enlarge(mask: Array, window: Window) -> Mask:
    """Resize the decoder's mask [64, 64] to the window's size, bilinear with threshold 0 as in big_vision's evaluator.
    Returns bool [height, width]."""
    rows, columns = window.shape
    small = PIL.Image.fromarray(np.ascontiguousarray(mask, np.float32))
    large: Mask = np.asarray(small.resize((columns, rows), PIL.Image.Resampling.BILINEAR)) > 0
    return large


def find(where: str | None = None, fetch: Callable[..., str] | None = None) -> MaskDecoder:
    """Load a decoder from its file, once per version of the file. Raises ModelError (decoder_missing, decoder_broken).

    where: a file, or `owner/repo/file.npz` on the hub (`spaces/owner/repo/file.npz` in a Space); by default the
    environment's DIPTYCH_MASK_DECODER. fetch: replaces huggingface_hub.hf_hub_download.
    """
    chosen = where or os.environ.get(VARIABLE)
    if not chosen:
        raise ModelError(f"There is no mask decoder for segmentation. {ADVICE}", code="decoder_missing")
    file = Path(chosen).expanduser()
    if not file.is_file():
        on_hub = _ON_HUB.fullmatch(chosen)
        if on_hub is None or chosen.startswith("."):
            raise ModelError(f"There is no mask decoder {chosen}. {ADVICE}", code="decoder_missing")
        kind, repository, name = on_hub.groups()
        file = _download(chosen, kind, repository, name, fetch)
    status = file.stat()
    return _read(file, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=4)
def _read(file: Path, changed: int, size: int) -> MaskDecoder:
    """Read a file. `changed` and `size` are keys of the cache: a file that was replaced is read again."""
    try:
        if not zipfile.is_zipfile(file):
            raise ValueError("it is no whole npz archive")
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            return from_arrays(arrays)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        problem = f"{file} is not a mask decoder in the format of vae-oid.npz: {error}."
        raise ModelError(f"{problem} {ADVICE}", code="decoder_broken") from None


def from_arrays(arrays: Mapping[str, Any]) -> MaskDecoder:
    """Make the decoder from the arrays of `vae-oid.npz`, without the encoder's. Raises ValueError for an array that is
    missing or whose shape does not fit the layer before it."""

    def array(name: str, *shape: int | None) -> Array:
        if name not in arrays:
            raise ValueError(f"it has no array {name}")
        value = arrays[name]
        fits = value.ndim == len(shape) and all(w in (None, h) for h, w in zip(value.shape, shape, strict=True))
        if not fits or value.dtype.kind != "f":
            wanted = " x ".join("any" if side is None else str(side) for side in shape)
            raise ValueError(f"{name} is {value.dtype} {' x '.join(map(str, value.shape))} instead of float {wanted}")
        return np.asarray(value, np.float32)

    def convolution(name: str, into: int, out: int | None, side: int) -> Layer:
        weight = array(f"{name}.weight", out, into, side, side)
        return weight.transpose(2, 3, 1, 0), array(f"{name}.bias", weight.shape[0])

    def transposed(name: str, into: int) -> Layer:
        weight = array(f"{name}.weight", into, None, 4, 4)
        return weight.transpose(2, 3, 0, 1), array(f"{name}.bias", weight.shape[1])

    def block(name: str, width: int) -> tuple[Layer, Layer, Layer]:
        first = convolution(f"{name}.0", width, None, 3)
        second = convolution(f"{name}.2", first[1].size, None, 3)
        return first, second, convolution(f"{name}.4", second[1].size, width, 1)

    codebook = array("_vq_vae._embedding", CODES, None)
    first = convolution("decoder.0", codebook.shape[1], None, 1)
    width = first[1].size
    blocks = block("decoder.2.net", width), block("decoder.3.net", width)
    ups: list[Layer] = []
    for name in ("decoder.4", "decoder.6", "decoder.8", "decoder.10"):
        ups.append(transposed(name, ups[-1][1].size if ups else width))
    return MaskDecoder(codebook, first, blocks, tuple(ups), convolution("decoder.12", ups[-1][1].size, 1, 1))


def _relu(x: Array) -> Array:
    return np.maximum(x, 0)


def _convolve(x: Array, layer: Layer) -> Array:
    """Convolve x [n, h, w, in] with a kernel [k, k, in, out], k odd, zero padding: [n, h, w, out]."""
    weight, bias = layer
    side, (_, height, width, _) = weight.shape[0], x.shape
    padded = np.pad(x, ((0, 0), (side // 2,) * 2, (side // 2,) * 2, (0, 0)))
    total: Array = bias + sum(
        padded[:, row : row + height, column : column + width] @ weight[row, column]
        for row in range(side)
        for column in range(side)
    )
    return total


def _upsample(x: Array, layer: Layer) -> Array:
    """Convolve x [n, h, w, in], transposed: kernel [4, 4, in, out], stride 2, padding 1. Returns [n, 2h, 2w, out]."""
    weight, bias = layer
    count, height, width, _ = x.shape
    total = np.zeros((count, 2 * height + 2, 2 * width + 2, bias.size), np.float32)
    for row in range(4):
        for column in range(4):
            total[:, row : row + 2 * height : 2, column : column + 2 * width : 2] += x @ weight[row, column]
    return total[:, 1:-1, 1:-1] + bias


def _download(where: str, kind: str | None, repository: str, name: str, fetch: Callable[..., str] | None) -> Path:
    from huggingface_hub import errors, hf_hub_download

    try:
        return Path(
            (fetch or hf_hub_download)(repository, name, repo_type=kind.rstrip("s") if kind else None, etag_timeout=10)
        )
    except (OSError, ValueError, RuntimeError, errors.HTTPError) as error:
        problem = f"The mask decoder {where} could not be downloaded from the hub: {error}."
        raise ModelError(f"{problem} {ADVICE}", code="decoder_missing") from error
