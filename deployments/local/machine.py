"""Runs a private Ray on one machine: few processes, on loopback only, with its own folder, cleaned up afterwards.

`ray.init` alone starts a monitor, a log monitor and a dashboard that nothing here uses (170 MB and 5 s of CPU), and
listens on all interfaces. Ray has settings for all three, but `ray.init` does not pass them on: hence `_Node`.
"""

import contextlib
import ctypes
import math
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from serve.engines.vllm import process_tree

LOOPBACK = "127.0.0.1"
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # Ctrl-C waits for nothing
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",  # the default, 0.1, costs 4% of a core; at 1 a killed replica is late
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",  # a replica whose engine is dead has nothing to finish
    "RAY_SERVE_MAX_PER_REPLICA_RETRY_COUNT": str(10**6),  # a model whose process ends at its start is never given up
    # One event loop per process: our code does not block it, and hops between threads cost a tenth of a request.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_FREEZE_GC_ON_STARTUP": "1",
    "RAY_worker_niceness": "0",  # at Ray's 15 anything else on the machine runs before the models
    # The rest reports less often what a single machine has no use for: 107 -> 85 ms of CPU a second when idle.
    "RAY_raylet_report_resources_period_milliseconds": "1000",
    "RAY_report_worker_backlog_interval_ms": "10000",
    "RAY_raylet_check_gc_period_milliseconds": "1000",
    "RAY_kill_idle_workers_interval_ms": "5000",
    "RAY_gcs_pull_resource_loads_period_milliseconds": "5000",
    "RAY_io_context_monitor_probe_interval_ms": "60000",
    "RAY_io_context_event_loop_lag_collection_interval_ms": "60000",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_event_stats": "0",
    "RAY_metrics_report_interval_ms": "60000",
    "REPORTER_UPDATE_INTERVAL_MS": "60000",
    "RAY_SERVE_EVENT_LOOP_MONITORING_INTERVAL_S": "60",
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "10000",
    "RAY_prestart_worker_first_driver": "0",  # else a process for each of the logical CPUs
}
SPARE_CPUS = 64
"""Logical CPUs kept free for models that a changed config adds."""
SHUTDOWN_S = 10.0
"""Seconds that `ray.shutdown` may take before its processes are killed."""
OBJECT_STORE_BYTES = 80 * 2**20  # requests do not go through the object store; Ray's minimum is 75 MiB


class RayEnded(Exception):
    """Ray itself has ended, or did not begin, so replicas are not placed, checked or replaced."""


class PrivateRay:
    """A Ray of our own, as long as a `with` block runs, which gets the folder of its logs.

    num_cpus: sum over all deployments. They are logical, so that a small machine can place them all. num_gpus: GPUs to
    simulate, for simulated engines; left out, Ray counts the real ones. spare_cpus: logical ones beside them.
    """

    def __init__(
        self,
        num_cpus: float,
        num_gpus: float | None = None,
        *,
        spare_cpus: int = SPARE_CPUS,
        object_store_bytes: int = OBJECT_STORE_BYTES,
    ) -> None:
        self._num_cpus, self._num_gpus = math.ceil(num_cpus) + spare_cpus, num_gpus
        self._object_store_bytes = object_store_bytes
        self._folder = Path(tempfile.mkdtemp(prefix="diptych-", dir="/tmp"))  # paths of sockets must stay short
        self._stopping = threading.Lock()
        _adopt_orphans()
        self._earlier = own_descendants()

    def __enter__(self) -> Path:
        os.environ.update(ENVIRONMENT)
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # no other user of this machine gets in
        try:
            _start(self._folder, self._num_cpus, self._num_gpus, self._object_store_bytes)
        except BaseException as error:
            self.stop()
            if type(error) is not Exception:  # Ray's when it gives up, after 30 s of a busy machine
                raise
            raise RayEnded(f"Ray could not be started: {' '.join(str(error).split())}") from error
        return self._folder / "session_latest" / "logs"

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, RayEnded):
            _kill(self._earlier)  # `ray.shutdown` would wait for processes that are gone
        self.stop()

    def stop(self) -> None:
        """Stop Ray and all its processes at once. Engines end with their replicas.

        Any thread may call it, whatever another does with Ray at that moment.
        """
        with self._stopping:
            if own_descendants(self._earlier):
                down = threading.Thread(target=_shut_down, daemon=True)
                down.start()
                down.join(SHUTDOWN_S)
                _kill(self._earlier)
            shutil.rmtree(self._folder, ignore_errors=True)


def check_ray() -> None:
    """Raise RayEnded where Ray's control store or its node process has ended."""
    import ray._private.worker

    node = ray._private.worker.global_worker.node
    for kind in ("gcs_server", "raylet"):
        for info in node.all_processes.get(kind, []):
            if not Path(f"/proc/{info.process.pid}").exists():
                raise RayEnded(f"Ray's {kind} has ended.")


def bind_to_loopback() -> None:
    """Bind Serve's port between replicas to loopback, where Ray runs on loopback only. Call it before Serve opens it.

    Serve binds that port to all interfaces, whatever host is configured, and unpickles whatever is sent to it.
    """
    import ray.serve._private.replica as replica
    import ray.util

    offer = replica.add_port_to_grpc_server
    if ray.util.get_node_ip_address() == LOOPBACK:
        replica.add_port_to_grpc_server = lambda server, at: offer(server, at.replace("[::]", LOOPBACK))


def _start(folder: Path, num_cpus: int, num_gpus: float | None, object_store_bytes: int) -> None:
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
            """Start no dashboard."""

    with patch.object(ray._private.node, "Node", _Node):
        ray.init(
            address="local",
            num_cpus=num_cpus,
            num_gpus=None if num_gpus is None else math.ceil(num_gpus),
            object_store_memory=object_store_bytes,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            _node_ip_address=LOOPBACK,
            _temp_dir=str(folder),
        )


def _shut_down() -> None:
    import ray

    with contextlib.suppress(RuntimeError, OSError):  # Ray may be in any state: what is left is killed
        ray.shutdown()


def _kill(earlier: Sequence[int]) -> None:
    """Wait for processes to end, then terminate, then kill those that are left."""
    for number, timeout_s in ((None, 2.0), (signal.SIGTERM, 2.0), (signal.SIGKILL, 2.0)):
        for process in own_descendants(earlier):
            if number is not None:
                with contextlib.suppress(OSError):
                    os.kill(process, number)
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            reap()
            if not own_descendants(earlier):
                return
            time.sleep(0.05)


def _adopt_orphans() -> None:
    """Make orphaned descendants our children, so that `own_descendants` finds them (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def reap() -> None:
    """Reap children that ended, adopted orphans among them."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def own_descendants(besides: Sequence[int] = ()) -> list[int]:
    """Return all descendants of this process, without `besides` and theirs."""
    return process_tree.descendants([os.getpid()], besides)[1:]
