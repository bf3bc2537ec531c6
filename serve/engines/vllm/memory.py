"""Size the key-value cache on a CPU, and check the free memory, before anything is loaded."""

from pathlib import Path

import psutil

from serve.engines.vllm.footprint import Footprint
from serve.errors import ModelError

KV_LEAST, KV_MOST = 64 << 20, 4 << 30


def kv_bytes(held: Footprint, requests: int) -> int:
    """Return the bytes of a key-value cache for so many requests of full length, between 64 MiB and 4 GiB.

    It holds at least one request. Pages are touched only when they are used, so small models use less than that.
    """
    sequence = held.cache(held.context + 128)
    return int(max(KV_LEAST, sequence, min(KV_MOST, sequence * requests)))


def check_memory(name: str, held: Footprint, cache: int) -> None:
    """Raise ModelError, with numbers, when the free memory cannot hold an engine with a cache of so many bytes."""
    wanted, free = held.fixed + cache, available()
    if wanted > free:
        raise ModelError(
            f"Too little memory for {name}: {_gib(wanted)} wanted "
            f"(weights {_gib(held.weights)}, key-value cache {_gib(cache)}), {_gib(free)} free.",
            code="out_of_memory",
        )


def available() -> int:
    """Return the bytes that a new process can have: free in the machine, or in the container where that is less."""
    free = int(psutil.virtual_memory().available)
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        return free if limit == "max" else min(free, int(limit) - used)
    except (OSError, ValueError):
        return free


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
