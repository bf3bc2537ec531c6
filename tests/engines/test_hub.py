import functools
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub import errors, snapshot_download
from loopback_hub import serving_hub

from serve.engines import hub
from serve.errors import ModelError


def checkpoint(folder: Path, *shards: str, size: int = 64) -> Path:
    """Write a minimal checkpoint: a configuration and safetensors files of `size` bytes of weights."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    for shard in shards:
        header = json.dumps({"w": {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}}).encode()
        (folder / shard).write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))
    return folder


def test_a_whole_local_folder_is_itself(tmp_path: Path) -> None:
    assert hub.locate(str(checkpoint(tmp_path, "model.safetensors"))) == tmp_path


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "~/nothing-here", "nothing"])
def test_a_missing_folder_is_named(name: str) -> None:
    with pytest.raises(ModelError, match="There is no folder") as caught:
        hub.locate(name)
    assert caught.value.code == "checkpoint_missing"


def broken(folder: Path, how: str) -> None:
    shard = folder / "model.safetensors"
    if how == "no config":
        (folder / "config.json").unlink()
    elif how == "no weights":
        shard.unlink()
    elif how == "cut":
        shard.write_bytes(shard.read_bytes()[:-10])
    elif how == "garbage":
        shard.write_bytes(b"\xff" * 40)
    elif how == "index":
        (folder / "model.safetensors.index.json").write_text('{"weight_map": {"w": 5}}')
    elif how in ("deep", "offsets"):
        header = b"[" * 100_000 if how == "deep" else b'{"a": {"data_offsets": []}}'
        shard.write_bytes(len(header).to_bytes(8, "little") + header)
    else:
        (folder / "model.safetensors.index.json").write_text('{"weight_map": {"w": "model-00002.safetensors"}}')


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no config", "no readable config.json"),
        ("no weights", "no weights"),
        ("cut", "cut short"),
        ("garbage", "no readable header"),
        ("deep", "no readable header"),
        ("offsets", "no readable header"),
        ("index", "index.json names no files"),
        ("shard", "lacks its file model-00002.safetensors"),
    ],
)
def test_broken_checkpoint_is_refused_with_its_fault(tmp_path: Path, how: str, message: str) -> None:
    broken(checkpoint(tmp_path, "model.safetensors"), how)
    with pytest.raises(ModelError, match=message) as caught:
        hub.locate(str(tmp_path))
    assert caught.value.code == "checkpoint_broken"


def test_a_download_pins_the_revision_and_tells_its_progress(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {}
    steps: list[str] = []

    def fetch(name: str, **keywords: Any) -> str:
        arguments.update(keywords, name=name)
        bar = keywords["tqdm_class"](total=96 * 2**20, unit="B", desc="Reconstructing")
        for _ in range(96):
            bar.update(2**20)
            bar.refresh()
        bar.close()
        return str(checkpoint(tmp_path, "model.safetensors"))

    assert hub.locate("org/model", "abc123", progress=steps.append, fetch=fetch) == tmp_path
    assert (arguments["name"], arguments["revision"]) == ("org/model", "abc123")
    assert steps[0] == "looking for org/model on the hub"
    assert "downloading 32 of 96 MiB" in steps and steps[-1] == "downloading 96 of 96 MiB"


def refused(kind: type[Exception], status: int) -> Exception:
    request = httpx.Request("GET", "https://huggingface.co/api")
    return kind("refused", response=httpx.Response(status, request=request))  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("error", "message", "code"),
    [
        (refused(errors.GatedRepoError, 403), "accept its licence at .*HF_TOKEN", "checkpoint_gated"),
        (refused(errors.RepositoryNotFoundError, 401), "is not on the hub", "checkpoint_missing"),
        (refused(errors.RevisionNotFoundError, 404), "no revision abc123", "checkpoint_missing"),
        (errors.LocalEntryNotFoundError("offline"), "cannot be reached", "hub_unreachable"),
        (ConnectionError("no route"), "cannot be reached", "hub_unreachable"),
    ],
)
def test_failed_download_names_the_remedy(error: Exception, message: str, code: str) -> None:
    def fetch(*_: Any, **__: Any) -> str:
        raise error

    with pytest.raises(ModelError, match=message) as caught:
        hub.locate("org/model", "abc123", fetch=fetch)
    assert caught.value.code == code


def test_download_without_files_that_are_never_fetched_is_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = checkpoint(tmp_path / "source", "model.safetensors")
    for name in ("pytorch_model.bin", "picture.png", "consolidated.safetensors"):
        (source / name).write_bytes(b"x")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    assert hub.cached("some/model") is None
    with serving_hub({"some/model": source}) as url:
        folder = hub.locate("some/model", fetch=functools.partial(snapshot_download, endpoint=url))
    assert hub.cached("some/model") == folder
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert hub.locate("some/model") == folder
    (folder / "model.safetensors").unlink()
    assert hub.cached("some/model") == folder
    with pytest.raises(ModelError) as caught:
        hub.locate("some/model")
    assert caught.value.code == "hub_unreachable"
