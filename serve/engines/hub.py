"""Locate a checkpoint's folder: here, in an object store, or downloaded from the Hugging Face hub."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serve.engines import object_store
from serve.errors import ModelError

PATTERNS = [
    "*.json",
    "*.safetensors",
    "*.model",
    "*.txt",
    "*.jinja",
    "README.md",
]  # no second copy as .bin, .gguf, .npz
SECOND_COPY = "consolidated*"
"""The weights once more, in Mistral's own layout, beside those in transformers' in its repositories."""
EVERY = 32 * 2**20  # bytes between two progress messages
REACH_S = 5.0
"""Seconds for the hub to answer at all, where it is only asked about."""


def locate(
    checkpoint: str,
    revision: str | None = None,
    *,
    gated: bool = False,
    progress: Callable[[str], None] = lambda step: None,
    fetch: Callable[..., Any] | None = None,
    check: Callable[[Path], None] | None = None,
) -> Path:
    """Return the folder of a checkpoint, with all its files. Raises ModelError with a sentence that says what to do.

    checkpoint: a folder, a hub id such as `google/paligemma-3b-mix-448`, with `revision`, the commit that pins it, or a
    URI such as s3://bucket/path, whose weights stay there. fetch: replaces huggingface_hub.snapshot_download. check:
    replaces `check_checkpoint`, for folders of another kind.
    """
    folder = Path(checkpoint).expanduser()
    if object_store.is_uri(checkpoint):
        folder = object_store.fetch(checkpoint, PATTERNS, whole=check is not None, progress=progress)
    elif not folder.is_dir():
        _check_id(checkpoint)
        progress(f"looking for {checkpoint} on the hub")
        folder = _download(checkpoint, revision, gated, progress, fetch)
    (check or check_checkpoint)(folder)
    return folder


def hub_url() -> str:
    """Return the hub's URL: HF_ENDPOINT's, else huggingface.co."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def unreachable() -> str | None:
    """Return why the hub cannot be asked now, as a phrase; None where it answers."""
    import httpx

    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
        return "HF_HUB_OFFLINE is set"
    try:
        httpx.head(hub_url(), timeout=REACH_S)
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        return str(error) or type(error).__name__
    return None


def has_token() -> bool:
    """Return whether there is a token for the hub: HF_TOKEN, or one that `hf auth login` saved."""
    from huggingface_hub import get_token

    return get_token() is not None


def check_access(checkpoint: str) -> None:
    """Raise ModelError where the hub refuses this token: its licence is not accepted, or there is none."""
    from huggingface_hub import HfApi

    def ask(name: str, **_: Any) -> str:
        HfApi(endpoint=hub_url()).auth_check(name)
        return ""

    _download(checkpoint, None, True, lambda step: None, ask)


def cached(checkpoint: str, revision: str | None = None) -> Path | None:
    """Return a checkpoint's folder on this machine, of which files may be missing; None where it has none.

    Asks no network. Raises ModelError for what is neither a folder nor a hub id.
    """
    if object_store.is_uri(checkpoint):
        copy = object_store.folder_of(checkpoint)
        return copy if copy.is_dir() else None
    folder = Path(checkpoint).expanduser()
    if folder.is_dir():
        return folder
    _check_id(checkpoint)
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(checkpoint, revision=revision, local_files_only=True))
    except errors.HFValidationError:
        raise ModelError(f"{checkpoint} is neither a folder nor a hub id.", code="checkpoint_missing") from None
    except errors.IncompleteSnapshotError as error:  # always so where PATTERNS leave files of the repository out
        return Path(error.snapshot_path)
    except OSError:  # LocalEntryNotFoundError is one
        return None


def config_folder(checkpoint: str, revision: str | None = None) -> Path | None:
    """Return the folder of this machine with a checkpoint's config.json, and maybe nothing else; None where it has
    none. Asks no network."""
    folder = Path(checkpoint).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import errors, try_to_load_from_cache

    try:
        file = try_to_load_from_cache(checkpoint, "config.json", revision=revision)
    except errors.HFValidationError:
        return None
    return Path(file).parent if isinstance(file, str) else None


def check_checkpoint(folder: Path) -> None:
    """Raise ModelError when files of a checkpoint are missing or truncated. Reads only their headers."""
    try:
        json.loads((folder / "config.json").read_text())
    except (OSError, ValueError, RecursionError):
        raise ModelError(f"{folder} has no readable config.json.", code="checkpoint_broken") from None
    index = folder / "model.safetensors.index.json"
    shards = set(object_store.weight_files(folder))
    headers = {shard.with_suffix("") for shard in shards if shard.suffix == object_store.HEADER}
    if index.exists():
        try:
            named = {folder / name for name in json.loads(index.read_text())["weight_map"].values()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise ModelError(f"{index} names no files with weights.", code="checkpoint_broken") from None
        shards |= named - headers
    if not shards:
        gguf = " vLLM 0.32 reads no GGUF: take the same model's safetensors." if any(folder.glob("*.gguf")) else ""
        raise ModelError(f"{folder} has no weights (*.safetensors).{gguf}", code="checkpoint_broken")
    for shard in sorted(shards):
        if not shard.exists():
            raise ModelError(f"{folder} lacks its file {shard.name}.", code="checkpoint_broken")
        if shard.suffix != object_store.HEADER:  # its file's length was compared in the store
            check_length(shard)


def check_length(file: Path) -> None:
    """Raise ModelError when a safetensors file has another length than its header states."""
    have, want = file.stat().st_size, _length(file)
    if have != want:
        raise ModelError(
            f"{file} is cut short or damaged: it has {have} bytes"
            + (f" of {want}." if want is not None else " and no readable header."),
            code="checkpoint_broken",
        )


def shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Return the tensors' shapes in an intact safetensors file, by name."""
    return {name: shape for name, (_, shape) in tensors(file).items()}


def tensors(file: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the tensors' types (F32, BF16, ...) and shapes in an intact safetensors file, by name."""
    entries = _header(file)[1].items()
    return {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in entries if name != "__metadata__"}


def all_tensors(folder: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the tensors' types and shapes of a checkpoint whose files are whole, by name."""
    return {name: entry for file in object_store.weight_files(folder) for name, entry in tensors(file).items()}


def _check_id(checkpoint: str) -> None:
    if checkpoint.startswith(("/", ".", "~")) or checkpoint.count("/") != 1:
        raise ModelError(f"There is no folder {checkpoint}.", code="checkpoint_missing")


def _header(file: Path) -> tuple[int, dict[str, Any]]:
    """Read a safetensors header. Returns its length in bytes and its entries. Raises ValueError where it is invalid."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > object_store.LONGEST:
            raise ValueError
        try:
            return length, dict(json.loads(opened.read(length)))
        except RecursionError:
            raise ValueError from None


def _length(file: Path) -> int | None:
    """Return the bytes that a safetensors file should have: 8 of header length, the header, and the tensors."""
    try:
        return object_store.stated_length(*_header(file))
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _download(
    checkpoint: str,
    revision: str | None,
    gated: bool,
    progress: Callable[[str], None],
    fetch: Callable[..., Any] | None,
) -> Path:
    from huggingface_hub import errors, snapshot_download

    page = f"https://huggingface.co/{checkpoint}"
    try:
        return Path(
            (fetch or snapshot_download)(
                checkpoint,
                revision=revision,
                allow_patterns=PATTERNS,
                ignore_patterns=SECOND_COPY,
                tqdm_class=_bar(progress),
            )
        )
    except (OSError, ValueError, RuntimeError, errors.HTTPError) as error:
        causes = list(_causes(error))
        if any(isinstance(cause, errors.GatedRepoError) for cause in causes):
            message = (
                f"{checkpoint} is gated: accept its licence at {page} and set HF_TOKEN to a token of that account."
            )
            raise ModelError(message, code="checkpoint_gated") from error
        if any(isinstance(cause, errors.RevisionNotFoundError) for cause in causes):
            message = f"{checkpoint} has no revision {revision} on the hub."
            raise ModelError(message, code="checkpoint_missing") from error
        if any(isinstance(cause, errors.RepositoryNotFoundError) for cause in causes):
            message = f"{checkpoint} is not on the hub, or not for this HF_TOKEN: see {page}."
            raise ModelError(message, code="checkpoint_missing") from error
        if any(isinstance(cause, errors.HFValidationError) for cause in causes):
            raise ModelError(f"{checkpoint} is neither a folder nor a hub id.", code="checkpoint_missing") from error
        if any(isinstance(cause, OSError) for cause in causes) or "connect" in str(error).lower():
            advice = " (it is gated: HF_TOKEN is needed too)" if gated else ""
            message = f"{checkpoint} is not downloaded yet and {page} cannot be reached{advice}: {causes[-1]}"
            raise ModelError(message, code="hub_unreachable") from error
        raise ModelError(f"{checkpoint} could not be downloaded: {error}", code="hub_error") from error


def _causes(error: BaseException | None) -> Any:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _bar(progress: Callable[[str], None]) -> Any:
    """Return a tqdm class that reports progress: huggingface_hub counts the bytes on disk in a bar whose unit is B."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **keywords: Any) -> None:
            self.last_reported = -EVERY
            self.bytes = keywords.get("unit") == "B" and "Reconstructing" in str(keywords.get("desc", ""))
            keywords.pop("name", None)
            super().__init__(*args, **{**keywords, "disable": False})

        def display(self, *args: Any, **keywords: Any) -> bool:
            if self.bytes and self.total and (self.n - self.last_reported >= EVERY or self.n >= self.total):
                self.last_reported = self.n
                progress(f"downloading {self.n / 2**20:.0f} of {self.total / 2**20:.0f} MiB")
            return True

    return Bar
