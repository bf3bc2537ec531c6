"""A Ray of our own on one machine: few processes, loopback only, its own folder, and nothing left of it afterwards.

`ray.init` alone starts a monitor, a log monitor and a dashboard that nothing here uses (170 MB and 5 s of CPU), and
listens on all interfaces. The three knobs for that exist, but `ray.init` does not hand them through: hence `_Node`.
"""

import contextlib
import ctypes
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

LOOPBACK = "127.0.0.1"
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",  # a replica whose engine is dead has nothing to finish
}
OBJECTS = 80 * 2**20  # requests go as arguments, not through the object store; Ray's least is 75 MiB


@contextlib.contextmanager
def machine(num_cpus: float) -> Iterator[Path]:
    """Ray, for as long as the block runs. Gives the folder of its logs.

    num_cpus: what the deployments ask for together; logical, so that a small machine places them all.
    """
    os.environ.update(ENVIRONMENT)
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # no other user of this machine gets in
    _adopt_orphans()
    folder = Path(tempfile.mkdtemp(prefix="diptych-", dir="/tmp"))  # its sockets' paths must stay short
    try:
        _start(folder, num_cpus)
        yield folder / "session_latest" / "logs"
    finally:
        _stop()
        shutil.rmtree(folder, ignore_errors=True)


def _start(folder: Path, num_cpus: float) -> None:
    import ray
    import ray._private.node

    class _Node(ray._private.node.Node):  # type: ignore[misc]
        def __init__(self, ray_params: Any, **rest: Any) -> None:
            ray_params.node_ip_address = LOOPBACK
            ray_params.dashboard_agent_listen_port = 0
            ray_params.no_monitor = True
            ray_params.include_log_monitor = False
            super().__init__(ray_params, **rest)

        def start_api_server(self, **_: Any) -> None:
            """No dashboard."""

    with patch.object(ray._private.node, "Node", _Node):
        ray.init(
            address="local",
            num_cpus=max(1, int(num_cpus + 0.999)),
            object_store_memory=OBJECTS,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            _node_ip_address=LOOPBACK,
            _temp_dir=str(folder),
        )


def _stop() -> None:
    import ray
    import ray.serve

    with contextlib.suppress(Exception):  # whatever state it is in: what does not stop by itself is ended below
        if ray.is_initialized():
            ray.serve.shutdown()
    with contextlib.suppress(Exception):
        ray.shutdown()
    _end(_descendants())


def _adopt_orphans() -> None:
    """Have orphaned descendants become our children, so that `_descendants` finds them (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def _descendants() -> list[int]:
    found = [os.getpid()]
    for process in found:
        for children in Path(f"/proc/{process}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found.extend(int(child) for child in children.read_text().split())
    return found[1:]


def _end(processes: list[int], patience_s: float = 3.0) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            with contextlib.suppress(OSError):
                os.kill(process, number)
        until = time.monotonic() + patience_s
        while _descendants() and time.monotonic() < until:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(-1, os.WNOHANG)
            time.sleep(0.05)
        processes = _descendants()
