"""A cluster's pods on one machine: each a network namespace with its own address and its own Ray node.

Needs root and iproute2. A pod is started as the rendered RayService says: the group's start parameters and its
container's environment, in the command that KubeRay makes of them (v1.7.0, common/pod.go). Without an image a pod
runs the programs of this environment, as root; with one it is a container (containers.py).
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from cluster.containers import Image, Unable, command, remove, run
from deployments.logs import FILE as LOG
from k8s.checks.rendered import Document, environment, groups

BRIDGE, NET = "diptych0", "10.213.77"
OBJECTS = 80 * 2**20
OWN_FOLDER = 'mount --bind "$0" "$1" && shift && exec "$@"'
"""`ip netns exec` brings a mount namespace: a pod has files of its own, as a container does. Nodes that start at once
in one folder use each other's sockets."""
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}
SHELL = ["/bin/bash", "-c", "--"]


@dataclass
class Pod:
    """A pod with its Ray node. component: the value of its label."""

    name: str
    component: str
    address: str
    command: list[str]
    env: dict[str, str]
    log: Path
    process: "subprocess.Popen[bytes] | None" = field(default=None, repr=False)

    @property
    def space(self) -> str:
        return f"diptych-{self.name}"

    def start(self) -> None:
        """Start its container, as the kubelet does."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env={**os.environ, **self.env},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def terminate(self) -> None:
        """Send SIGTERM to its first process, as the kubelet does."""
        if self.process is not None:
            self.process.terminate()

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """Kill all its processes at once."""
        pids = subprocess.run(["ip", "netns", "pids", self.space], capture_output=True, text=True).stdout
        for pid in map(int, pids.split()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.process is not None:
            self.process.wait()
        remove(self.space)


@dataclass
class Cluster:
    """The pods of a RayService. token: Ray's, for its ports; folder: with logs and Secrets' files."""

    pods: list[Pod]
    token: str
    folder: Path
    containers: bool

    def of(self, component: str) -> list[Pod]:
        return [pod for pod in self.pods if pod.component == component]

    @property
    def dashboard(self) -> str:
        return f"http://{self.of('head')[0].address}:8265"


@contextmanager
def cluster(service: Document, image: Image | None = None) -> Iterator[Cluster]:
    """Start all pods, the head first, and remove them after the block. Raises Unable."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        raise Unable("network namespaces need root and iproute2 (the program ip)")
    folder = Path(f"/tmp/diptych-{secrets.token_hex(3)}")  # its sockets' paths must stay short
    (folder / "ray").mkdir(parents=True)
    token = secrets.token_hex(32)
    started = Cluster(list(_pods(service, folder, token, image)), token, folder, image is not None)
    try:
        _network(started.pods)
        for pod in started.pods:
            pod.start()
            if pod.component == "head":
                _wait_for(pod)
        yield started
    finally:
        for pod in started.pods:
            pod.kill()
        _take_down(started.pods)
        shutil.rmtree(folder, ignore_errors=True)


def _pods(service: Document, folder: Path, token: str, image: Image | None) -> Iterator[Pod]:
    head = f"{NET}.10"
    number = 10
    for name, group in groups(service):
        for i in range(group.get("replicas", 1)):
            address = f"{NET}.{number}"
            number += 1
            template = group["template"]
            pod_name = name if name == "head" else f"{name}-{i}"
            component = template["metadata"]["labels"]["app.kubernetes.io/component"]
            pod = Pod(pod_name, component, address, [], {}, folder / f"{pod_name}.log")
            options = ["--head", "--port=6379"] if name == "head" else [f"--address={head}:6379"]
            options += [f"--{key}={value}" for key, value in group["rayStartParams"].items()]
            options += [
                f"--node-ip-address={address}",
                "--metrics-export-port=8080",
                "--disable-usage-stats",
                "--block",
            ]
            options += [f"--object-store-memory={OBJECTS}"]
            env = {key: value for key, value in environment(group).items() if value is not None}
            env |= {**QUIET, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
            if image is None:
                options.append(f"--temp-dir={folder}/ray")
                own = folder / pod_name
                own.mkdir()
                programs = Path(sys.executable).parent
                pod.env = {**env, LOG: str(pod.log), "PYTHONPATH": os.getcwd()}
                pod.env["PATH"] = f"{programs}:{os.environ['PATH']}"
                inside = ["sh", "-c", OWN_FOLDER, str(own), f"{folder}/ray", *SHELL, _line(options)]
                pod.command = ["ip", "netns", "exec", pod.space, *inside]
            else:
                pod.command = command(
                    image, pod_name, template["spec"], [*SHELL, _line(options)], env, pod.space, folder
                )
            yield pod


def _line(options: list[str]) -> str:
    return f"ulimit -n ${{RAY_START_ULIMIT_OPEN_FILES:-65536}}; ray start {' '.join(options)}"


def _network(pods: list[Pod]) -> None:
    """Add a bridge, and a namespace behind it for each pod."""
    for pod in pods:
        pod.kill()  # of a run that was killed
    _take_down(pods)
    run("ip", "link", "add", BRIDGE, "type", "bridge")
    run("ip", "address", "add", f"{NET}.1/24", "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")
    for i, pod in enumerate(pods):
        outside = f"{BRIDGE}-{i}"
        run("ip", "netns", "add", pod.space)
        run("ip", "link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", pod.space)
        run("ip", "link", "set", outside, "master", BRIDGE, "up")
        for options in (["address", "add", f"{pod.address}/24", "dev", "eth0"], ["link", "set", "eth0", "up"]):
            run("ip", "-n", pod.space, *options)
        run("ip", "-n", pod.space, "link", "set", "lo", "up")


def _take_down(pods: list[Pod]) -> None:
    for i, pod in enumerate(pods):
        subprocess.run(["ip", "link", "delete", f"{BRIDGE}-{i}"], capture_output=True)
        subprocess.run(["ip", "netns", "delete", pod.space], capture_output=True)
    subprocess.run(["ip", "link", "delete", BRIDGE], capture_output=True)


def _wait_for(head: Pod, seconds: float = 60.0) -> None:
    """Wait until others can join the head."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            with socket.create_connection((head.address, 6379), timeout=1):
                return
        except OSError:
            time.sleep(0.2)
        if not head.alive():
            raise Unable(f"the head ended: {head.log.read_text()[-500:]}")
    raise Unable(f"the head does not listen: {head.log.read_text()[-500:]}")
