"""The LoRA adapters that were loaded: the file that keeps them, which several gateways share, and its messages."""

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from deployments.args import LoraArgs
from serve.errors import Overloaded

log = logging.getLogger(__name__)

HOLD = "hold_adapters"
"""The method of a replica that takes WantedAdapters."""
TURN_S = 30.0
"""Seconds to wait for another gateway, or request, that loads or unloads an adapter."""


class LoadedAdapter(LoraArgs):
    """An adapter that was loaded. loaded: the version of the state with which it came, which tells it from others of
    its name."""

    loaded: int


@dataclass(frozen=True)
class AdapterState:
    """The adapters that are loaded. version: grows with each change."""

    version: int = 0
    adapters: Sequence[LoadedAdapter] = ()

    def next_version(self) -> int:
        """Return a version above this one, and above one that a gateway began with and did not live to write."""
        return max(self.version + 1, time.time_ns())

    def without(self, name: str) -> list[LoadedAdapter]:
        return [adapter for adapter in self.adapters if adapter.name != name]

    def named(self, name: str) -> LoadedAdapter | None:
        return next((adapter for adapter in self.adapters if adapter.name == name), None)


class WantedAdapters(NamedTuple):
    """Gateway to replica: the adapters that it is to hold. folder, max_mb: as in AdapterArgs."""

    version: int
    adapters: tuple[LoadedAdapter, ...]
    folder: Path
    max_mb: float


class AdapterFile:
    """The file. Raises OSError where it cannot be used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = path.with_name(f"{path.name}.lock")
        try:
            self._lock.touch(mode=0o600)
        except OSError as error:
            raise OSError(f"{path} cannot keep which LoRA adapters are loaded: {error.strerror}.") from None

    def content(self) -> bytes:
        """Return what is in the file; nothing where there is none yet."""
        return self.path.read_bytes() if self.path.exists() else b""

    def write(self, state: AdapterState) -> bytes:
        """Replace the file, and return its new content."""
        adapters = [adapter.model_dump(mode="json", exclude_unset=True) for adapter in state.adapters]
        content = json.dumps({"version": state.version, "adapters": adapters}, indent=1).encode() + b"\n"
        new = self.path.with_name(f"{self.path.name}.new")
        with new.open("wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.path)
        return content

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Keep every other gateway and request out while the block runs. Raises Overloaded after TURN_S."""
        with self._lock.open("w") as file:
            until = time.monotonic() + TURN_S
            while not _locked(file.fileno()):
                if time.monotonic() > until:
                    raise Overloaded("Another adapter is being loaded or unloaded; ask again.")
                await asyncio.sleep(0.05)
            try:
                yield
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)  # a child process may have the file open, too


def parse_state(content: bytes, source: Path) -> AdapterState:
    """Return the state in a file's content. An adapter that another release wrote and this one does not know is left
    out, and logged. Raises ValueError where the content is no state."""
    if not content:
        return AdapterState()
    adapters = []
    try:
        whole = json.loads(content)
        version, entries = int(whole["version"]), list(whole["adapters"])
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
        raise ValueError(f"{source} does not hold which LoRA adapters are loaded.") from None
    for entry in entries:
        try:
            adapters.append(LoadedAdapter.model_validate(entry))
        except ValidationError as error:
            log.warning("%s has an adapter that cannot be served: %s", source, " ".join(str(error).split()))
    return AdapterState(version, adapters)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another has it
        return False
    return True
