"""The numpy mask decoder against the same layers in torch, its file, and the place of a mask in the image."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoders import saved, weights

from serve.errors import ModelError
from serve.models import mask_decoder
from serve.models.mask_decoder import VARIABLE, find, from_arrays, paste


@pytest.mark.engine
@pytest.mark.parametrize("widths", [(12, 8, (8, 6, 4, 2)), (512, 128, (128, 64, 32, 16))])
def test_decoder_computes_the_published_network(widths: tuple[int, int, tuple[int, ...]]) -> None:
    import torch
    from torch.nn import functional as F

    arrays = weights(*widths)
    t = {name: torch.from_numpy(array) for name, array in arrays.items()}
    codes = np.random.default_rng(1).integers(0, 128, (3, 16))
    x = t["_vq_vae._embedding"][torch.from_numpy(codes)].reshape(3, 4, 4, -1).permute(0, 3, 1, 2)
    x = F.relu(F.conv2d(x, t["decoder.0.weight"], t["decoder.0.bias"]))
    for net in ("decoder.2.net", "decoder.3.net"):
        y = F.relu(F.conv2d(x, t[f"{net}.0.weight"], t[f"{net}.0.bias"], padding=1))
        y = F.relu(F.conv2d(y, t[f"{net}.2.weight"], t[f"{net}.2.bias"], padding=1))
        x = x + F.conv2d(y, t[f"{net}.4.weight"], t[f"{net}.4.bias"])
    for layer in (4, 6, 8, 10):
        x = F.relu(F.conv_transpose2d(x, t[f"decoder.{layer}.weight"], t[f"decoder.{layer}.bias"], stride=2, padding=1))
    wanted = F.conv2d(x, t["decoder.12.weight"], t["decoder.12.bias"])[:, 0].numpy()
    got = from_arrays(arrays)(codes)
    assert got.shape == (3, 64, 64) and got.dtype == np.float32
    assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_codes_are_laid_out_in_rows() -> None:
    """Leave out the residual blocks, which mix all sixteen codes: a corner's code then changes that corner only."""
    arrays = weights()
    for block in (2, 3):
        arrays[f"decoder.{block}.net.4.weight"][:] = 0
    decoder = from_arrays(arrays)
    codes = np.zeros((2, 16), np.int64)
    codes[1, 3] = 7  # the top right
    first, second = decoder(codes)
    changed = np.abs(first - second) > 1e-6
    assert changed[:16, 48:].any() and not changed[32:].any() and not changed[:, :32].any()


def test_mask_is_pasted_into_its_box_with_threshold_zero() -> None:
    half = np.full((64, 64), -1.0, np.float32)
    half[:, 32:] = 1
    mask = paste(half, (0.25, 0.5, 0.75, 1.0), 40, 20)
    assert mask is not None and mask.shape == (20, 40) and mask.dtype == np.bool_
    wanted = np.zeros((20, 40), bool)
    wanted[10:20, 20:30] = True
    assert (mask == wanted).all()
    assert paste(half, (0.5, 0.5, 0.51, 0.9), 40, 20) is None  # less than a pixel wide


def test_replaced_file_is_read_again_and_unchanged_file_is_cached(tmp_path: Path) -> None:
    where = saved(tmp_path, weights())
    first = find(where)
    assert find(where) is first
    saved(tmp_path, weights(seed=5))
    os.utime(where, ns=(1, 1))
    assert find(where) is not first


def test_environment_variable_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, saved(tmp_path, weights()))
    assert find().codebook.shape == (128, 12)


@pytest.mark.parametrize("where", [None, "/nowhere/vae-oid.npz", "./vae-oid.npz", "vae-oid.npz"])
def test_missing_file_raises_an_error_with_advice(where: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(ModelError) as error:
        find(where)
    assert error.value.code == "decoder_missing"
    assert (where or "no mask decoder") in error.value.message
    assert VARIABLE in error.value.message and "gs://big_vision/paligemma/vae-oid.npz" in error.value.message


@pytest.mark.parametrize(
    "where, repository, kind",
    [
        ("ours/decoder/vae-oid.npz", "ours/decoder", None),
        ("spaces/google/paligemma-hf/vae-oid.npz", "google/paligemma-hf", "space"),
    ],
)
def test_hub_path_is_downloaded(tmp_path: Path, where: str, repository: str, kind: str | None) -> None:
    calls: list[tuple[Any, ...]] = []

    def fetch(repository: str, name: str, *, repo_type: str | None, etag_timeout: float) -> str:
        calls.append((repository, name, repo_type))
        return saved(tmp_path, weights())

    assert find(where, fetch).codebook.shape == (128, 12)
    assert calls == [(repository, "vae-oid.npz", kind)]


def test_unreachable_hub_raises_decoder_missing(tmp_path: Path) -> None:
    def fetch(*args: Any, **keywords: Any) -> str:
        raise OSError("no network")

    with pytest.raises(ModelError, match="ours/decoder/vae-oid.npz could not be downloaded.*no network") as error:
        find("ours/decoder/vae-oid.npz", fetch)
    assert error.value.code == "decoder_missing"


def test_file_that_is_no_decoder_raises_decoder_broken(tmp_path: Path) -> None:
    arrays = weights()
    broken = {
        "it has no array decoder.6.bias": {k: v for k, v in arrays.items() if k != "decoder.6.bias"},
        "decoder.4.weight is float32 8 x 8 x 3 x 3 instead of float 8 x any x 4 x 4": arrays
        | {"decoder.4.weight": np.zeros((8, 8, 3, 3), np.float32)},
        "_vq_vae._embedding is int64 128 x 12": arrays | {"_vq_vae._embedding": np.zeros((128, 12), np.int64)},
    }
    for index, (problem, changed) in enumerate(broken.items()):
        (tmp_path / str(index)).mkdir()
        where = saved(tmp_path / str(index), changed)
        with pytest.raises(ModelError, match=problem) as error:
            find(where)
        assert error.value.code == "decoder_broken" and where in error.value.message
    cut = tmp_path / "cut.npz"
    cut.write_bytes(Path(saved(tmp_path, arrays)).read_bytes()[:500])
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, **{"_vq_vae._embedding": np.array([{}], dtype=object)})
    single = tmp_path / "single.npz"
    with single.open("wb") as opened:
        np.save(opened, np.zeros(3))
    for file in (cut, pickled, single):
        with pytest.raises(ModelError, match=str(file)) as error:
            find(str(file))
        assert error.value.code == "decoder_broken"


def test_published_widths_decode_within_two_seconds() -> None:
    import time

    decoder = mask_decoder.from_arrays(weights(512, 128, (128, 64, 32, 16)))
    began = time.perf_counter()
    decoder(np.zeros((4, 16), np.int64))
    assert time.perf_counter() - began < 2
