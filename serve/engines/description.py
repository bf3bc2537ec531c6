"""Read what a checkpoint is, from its configuration and the headers of its weights: no weight is read or downloaded."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serve.engines import checkpoint_facts, hub, object_store
from serve.errors import ModelError

CONFIGURATION = ["config.json", "preprocessor_config.json"]


@dataclass(frozen=True)
class Description:
    """A checkpoint's config.json and preprocessor_config.json, and its tensors' types and shapes by name."""

    config: Mapping[str, Any]
    processor: Mapping[str, Any]
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]
    folder: Path | None = field(default=None, compare=False)
    """Its folder; None where only its headers are on this machine."""


def describe(checkpoint: str, revision: str | None = None, *, gated: bool = False) -> Description:
    """Describe a folder, a downloaded checkpoint, or one elsewhere. Raises ModelError as `hub.locate`.

    Of one on the hub or in an object store some kilobytes are fetched: its configuration, and the headers of its
    safetensors files.
    """
    if object_store.is_uri(checkpoint):
        return read(hub.locate(checkpoint))
    folder = hub.cached(checkpoint, revision)
    if folder is not None and (folder == Path(checkpoint).expanduser() or _is_whole(folder)):
        return read(folder)
    remote: dict[str, tuple[str, tuple[int, ...]]] = {}

    def fetch(name: str, revision: str | None, **_: Any) -> str:
        if (reason := hub.unreachable()) is not None:
            raise ConnectionError(reason)
        remote.update(_headers(name, revision))
        return _configuration(name, revision)

    return _described(
        hub.locate(checkpoint, revision, gated=gated, fetch=fetch, check=lambda folder: None), remote, None
    )


def read(folder: Path) -> Description:
    """Describe a folder whose files are whole. Raises ModelError where they are not."""
    hub.check_checkpoint(folder)
    return _described(folder, hub.all_tensors(folder), folder)


def _is_whole(folder: Path) -> bool:
    try:
        hub.check_checkpoint(folder)
    except ModelError:
        return False
    return True


def _described(source: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]], folder: Path | None) -> Description:
    config, processor = (
        json.loads(file.read_text()) if file.exists() else {} for file in map(source.joinpath, CONFIGURATION)
    )
    return Description(config, processor, tensors, folder)


def _headers(name: str, revision: str | None) -> dict[str, tuple[str, tuple[int, ...]]]:
    from huggingface_hub import HfApi, errors

    try:
        files = HfApi(endpoint=hub.hub_url()).get_safetensors_metadata(name, revision=revision).files_metadata.values()
    except (errors.NotASafetensorsRepoError, errors.SafetensorsParsingError):
        raise ModelError(f"{name} has no readable weights (*.safetensors).", code="checkpoint_broken") from None
    return {key: (info.dtype, tuple(info.shape)) for file in files for key, info in file.tensors.items()}


def _configuration(name: str, revision: str | None) -> str:
    from huggingface_hub import snapshot_download

    # with the files of a model's card
    return str(
        snapshot_download(name, revision=revision, allow_patterns=checkpoint_facts.FILES, endpoint=hub.hub_url())
    )
