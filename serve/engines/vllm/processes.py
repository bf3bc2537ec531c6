"""Start vLLM's EngineCore process: forked where that is safe, and ended with its parent.

Nearly all of a small engine's start is importing: 10-13 seconds of CPU time in our process and as much again in a
spawned one. A fork of a process that has imported vLLM and done nothing else shares both the time and the pages. It
is not safe once torch has computed anything in parallel (libgomp's threads do not survive a fork, and the child would
wait for them without end), so only a process that had not imported torch before forks, and only on a CPU.

Without further measures a killed parent leaves its engine running, with all its memory: the child watches its parent.
"""

import contextlib
import gc
import multiprocessing
import multiprocessing.context
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

WATCH_S = 1.0
ENGINE_NICENESS = 12
"""Niceness of an engine that computes on the CPU: above the decoders' (serve/media/decoder_process.py). A step of the
engine takes nearly as long for one prompt as for many, so the pictures that it waits for are decoded first. At 15
hostile pictures held up others for longer (loadtest/NOTES.md)."""
_niceness = 0


class WatchedForkProcess(multiprocessing.context.ForkProcess):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.expected_parent = os.getpid()  # taken here: the parent may be gone when the child starts
        self.niceness = _niceness

    def run(self) -> None:
        os.nice(self.niceness)  # before any thread, as each has its own
        forget_sockets()
        end_with_parent(self.expected_parent)
        super().run()


class WatchedSpawnProcess(multiprocessing.context.SpawnProcess):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.expected_parent = os.getpid()
        self.niceness = _niceness

    def run(self) -> None:
        os.nice(self.niceness)
        end_with_parent(self.expected_parent)
        super().run()


class WatchedForkContext(multiprocessing.context.ForkContext):
    Process = WatchedForkProcess


class WatchedSpawnContext(multiprocessing.context.SpawnContext):
    Process = WatchedSpawnProcess


def may_fork() -> bool:
    """Return whether a child may be forked later.

    Call it before vLLM is imported; VLLM_WORKER_MULTIPROC_METHOD wins.
    """
    return "torch" not in sys.modules and os.environ.get("VLLM_WORKER_MULTIPROC_METHOD") != "spawn"


def set_start_method(fork: bool, niceness: int = 0) -> None:
    """Make vLLM start EngineCore by fork, or by the method that vLLM chooses; both end with their parent.

    niceness: added to EngineCore's.
    """
    global _niceness
    _niceness = niceness
    import vllm.v1.engine.utils
    from vllm.utils.system_utils import get_mp_context

    def context() -> Any:
        if fork:
            gc.collect()
            gc.freeze()  # or the garbage collector's marks would copy every shared page
            return WatchedForkContext()
        chosen = get_mp_context()
        return WatchedSpawnContext() if chosen.get_start_method() == "spawn" else WatchedForkContext()

    vllm.v1.engine.utils.get_mp_context = context


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Keep the garbage collector from what is imported here, now and later.

    vLLM's million objects stay, and the collector goes through all of them again each time that they have grown by a
    quarter: a fifth of an engine's start (NOTES.md), and pauses of half a second ever after.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.collect()
        gc.freeze()
        if was_enabled:
            gc.enable()


def inspect_here() -> None:
    """Let vLLM look at a model's class in this process.

    vLLM starts another one, which imports everything again (16 s of a core), so that ours does not initialise CUDA. It
    keeps what it saw in ~/.cache/vllm, so the first start of each architecture on a machine waits for it. Without a GPU
    there is nothing to initialise, and a forked EngineCore has the class already.
    """
    from vllm.model_executor.models import registry

    registry._run_in_subprocess = lambda look: look()


def end_with_parent(parent: int) -> None:
    """Kill this process when its parent has ended."""

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=look, name="parent-watch", daemon=True).start()


def forget_sockets() -> None:
    """Close the parent's connections, which would otherwise stay open when the parent ends.

    Their descriptors are redirected to /dev/null: some inherited object will close them.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if int(name) > 2 and os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                os.dup2(null, int(name))
    os.close(null)
