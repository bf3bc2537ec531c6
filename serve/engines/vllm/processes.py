"""How vLLM's EngineCore process comes to be: forked where that is safe, and never outliving us.

Nearly all of a small engine's start is importing: 10-13 seconds of CPU time in our process and as much again in a
spawned one. A fork of a process that has imported vLLM and done nothing else shares both the time and the pages. It
is not safe once torch has computed anything in parallel (libgomp's threads do not survive a fork, and the child would
wait for them for ever), so only a process that had not imported torch before forks, and only on a CPU.

Either way a killed parent leaves its engine running, with all its memory: the child watches for that.
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
from typing import Any

WATCH_S = 1.0


class Forked(multiprocessing.context.ForkProcess):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.maker = os.getpid()  # asked for here: the child may begin when its parent is gone already

    def run(self) -> None:
        forget_sockets()
        watch(self.maker)
        super().run()


class Spawned(multiprocessing.context.SpawnProcess):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.maker = os.getpid()

    def run(self) -> None:
        watch(self.maker)
        super().run()


class Forking(multiprocessing.context.ForkContext):
    Process = Forked


class Spawning(multiprocessing.context.SpawnContext):
    Process = Spawned


def may_fork() -> bool:
    """Whether a child may be forked later on. Ask before vLLM is imported; VLLM_WORKER_MULTIPROC_METHOD overrules."""
    return "torch" not in sys.modules and os.environ.get("VLLM_WORKER_MULTIPROC_METHOD") != "spawn"


def start_by(fork: bool) -> None:
    """From now on vLLM starts EngineCore so: by fork, or as it would itself."""
    import vllm.v1.engine.utils
    from vllm.utils.system_utils import get_mp_context

    def context() -> Any:
        if fork:
            gc.collect()
            gc.freeze()  # the collector's marks would copy every page that parent and child share
            return Forking()
        chosen = get_mp_context()
        return Spawning() if chosen.get_start_method() == "spawn" else Forking()

    vllm.v1.engine.utils.get_mp_context = context


def watch(parent: int) -> None:
    """Kill this process when its parent is gone."""

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=look, name="parent-watch", daemon=True).start()


def forget_sockets() -> None:
    """Let go of the parent's connections, which would otherwise stay open when the parent dies.

    Their numbers stay taken, by /dev/null: some object still means to close them.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if int(name) > 2 and os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                os.dup2(null, int(name))
    os.close(null)
