"""A vLLM plugin that lets process groups of one process share a device of gloo's.

vLLM 0.32 makes ten groups for an engine, also where it is a single process. Each has a device with a thread that looks
for messages every 10 ms, though nobody can send one: 9 ms of a core each second (NOTES.md). Groups of several processes
stay as they are.
"""

import functools
import os
from datetime import timedelta
from typing import Any


def register() -> None:
    """Register the plugin: the entry point `vllm.general_plugins`. It may be called several times."""
    from torch.distributed import distributed_c10d as distributed

    stock: Any = distributed.ProcessGroupGloo
    if hasattr(stock, "diptych_device"):
        return

    class SharingGroup(stock):  # type: ignore[misc]
        @staticmethod
        @functools.cache
        def diptych_device(process: int) -> Any:
            """Return the device of this process: a forked one has not its parent's thread."""
            return stock.create_default_device()

        def __init__(self, store: Any, rank: int, size: int, timeout: timedelta) -> None:
            if size > 1:
                super().__init__(store, rank, size, timeout)
                return
            options = stock._Options()
            options._devices, options._timeout = [self.diptych_device(os.getpid())], timeout
            super().__init__(store, rank, size, options)

    distributed.ProcessGroupGloo = SharingGroup  # type: ignore[misc]
