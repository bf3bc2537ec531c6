"""Read a checkpoint in an object store, as s3://bucket/path or gs://bucket/path, but for its weights.

Of the weights only the headers are fetched, for the checks and plans before a start; vLLM streams the rest from the
store itself, by Run:ai's model streamer. The copy of the small files lies beside the hub's downloads.
"""

import fnmatch
import hashlib
import importlib.util
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from serve.errors import ModelError

PACKAGES = {"s3://": ("s3fs", "runai_model_streamer_s3"), "gs://": ("gcsfs", "runai_model_streamer_gcs")}
"""By scheme: the modules that read the small files, and that stream the weights."""
HEADER = ".header"
"""The end of the name of a file that is the header of the safetensors file before it."""
LONGEST = 100 * 2**20
"""Bytes of the longest header that the safetensors format allows."""


def is_uri(checkpoint: str) -> bool:
    return checkpoint.startswith(tuple(PACKAGES))


def engine_arguments(uri: str) -> dict[str, Any]:
    """Return vLLM's arguments to stream the weights of a checkpoint whose other files `fetch` has copied.

    Raises ModelError where the streamer is not installed.
    """
    _require(uri, PACKAGES[uri[:5]][1])
    return {"model_weights": uri, "load_format": "runai_streamer"}


def folder_of(uri: str) -> Path:
    """Return the folder that the copy of a checkpoint's small files has, or will have."""
    from huggingface_hub import constants

    name = uri.rstrip("/").rsplit("/", 1)[-1]
    return Path(constants.HF_HOME) / "object-store" / f"{name}-{hashlib.sha256(uri.encode()).hexdigest()[:12]}"


def fetch(
    uri: str, patterns: Sequence[str], *, whole: bool = False, progress: Callable[[str], None] = lambda step: None
) -> Path:
    """Copy a checkpoint's small files and the headers of its weights. Return their folder.

    patterns: of the files' names. whole: the weights as well, for a LoRA. Raises ModelError with what to do.
    """
    progress(f"reading {uri}")
    store, folder = _Store(uri), folder_of(uri)
    wanted = {name: size for name, size in store.sizes().items() if any(fnmatch.fnmatch(name, p) for p in patterns)}
    folder.mkdir(parents=True, exist_ok=True)
    headers = {name for name in wanted if name.endswith(".safetensors") and not whole}
    copies = {name: folder / (f"{name}{HEADER}" if name in headers else name) for name in wanted}
    for old in set(folder.iterdir()) - set(copies.values()):  # what the store has no more is not here either
        old.unlink(missing_ok=True)
    part = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        for name, copy in copies.items():
            part.write_bytes(store.header(name, wanted[name]) if name in headers else store.read(name))
            part.replace(copy)  # whole at any time: other replicas read it while this one starts
    finally:
        part.unlink(missing_ok=True)
    return folder


def weight_files(folder: Path) -> list[Path]:
    """Return a checkpoint's safetensors files, or their headers where the weights are in an object store."""
    return sorted([*folder.glob("*.safetensors"), *folder.glob(f"*.safetensors{HEADER}")])


def stated_length(header: int, entries: Mapping[str, Any]) -> int:
    """Return the length of a safetensors file by its header, of so many bytes. Raises as what is no header does."""
    ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
    return 8 + header + max(ends, default=0)


class _Store:
    """The files at a URI, by fsspec. All methods raise ModelError."""

    def __init__(self, uri: str) -> None:
        _require(uri, PACKAGES[uri[:5]][0])
        import fsspec  # type: ignore[import-untyped]

        self.uri = uri.rstrip("/")
        self._files, self._path = fsspec.core.url_to_fs(self.uri, use_listings_cache=False)

    def sizes(self) -> dict[str, int]:
        """Return the sizes of the files, by name."""
        try:
            entries = self._files.ls(self._path, detail=True)
        except FileNotFoundError:
            raise ModelError(f"There is nothing at {self.uri}.", code="checkpoint_missing") from None
        except PermissionError as error:
            message = f"{self.uri} may not be read with these credentials: {_brief(error)}"
            raise ModelError(message, code="checkpoint_gated") from error
        except Exception as error:  # each store's client has errors of its own
            raise ModelError(f"{self.uri} cannot be listed: {_brief(error)}", code="store_unreachable") from error
        return {entry["name"].rsplit("/", 1)[-1]: entry["size"] for entry in entries if entry["type"] == "file"}

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        try:
            return bytes(self._files.cat_file(f"{self._path}/{name}", start=start, end=end))
        except Exception as error:
            raise ModelError(f"{self.uri}/{name} cannot be read: {_brief(error)}", code="store_unreachable") from error

    def header(self, name: str, size: int) -> bytes:
        """Return the header of a safetensors file of `size` bytes, with its length in front."""
        length = int.from_bytes(self.read(name, 0, 8), "little")
        if length > min(LONGEST, size):
            raise self._broken(name, "it has no readable header")
        header = self.read(name, 0, 8 + length)
        try:
            states = stated_length(length, json.loads(header[8:]))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise self._broken(name, "it has no readable header") from None
        if size != states:
            raise self._broken(name, f"it has {size} bytes of {states}")
        return header

    def _broken(self, name: str, why: str) -> ModelError:
        return ModelError(f"{self.uri}/{name} is cut short or damaged: {why}.", code="checkpoint_broken")


def _require(uri: str, module: str) -> None:
    if importlib.util.find_spec(module) is None:
        message = f"{uri} needs packages that are not installed: pip install 'diptych[object-store]'."
        raise ModelError(message, code="load_failed")


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
