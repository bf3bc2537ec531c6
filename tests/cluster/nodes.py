"""A cluster's pods on one machine: each a network namespace with its own address and its own Ray node.

Needs root and iproute2. A pod is started as the rendered RayService says: the group's start parameters and its
container's environment, in the command that KubeRay makes of them (v1.7.0, common/pod.go). Without an image a pod
runs the programs of this environment, as root; with one it is a container (containers.py).
"""

import itertools
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from cluster.containers import Image, Unable, command, remove, run
from deployments.logs import FILE as LOG
from k8s.checks.operations import LOADING
from k8s.checks.rendered import Document, environment, groups
from k8s.checks.serve_config import resources

BRIDGE, NET = "diptych0", "10.213.77"
FIRST = 10
"""The head's number in the net; further pods have the next ones."""
OBJECTS = 80 * 2**20
OWN_FOLDER = 'mount --bind "$0" "$1" && shift && exec "$@"'
"""`ip netns exec` brings a mount namespace: a pod has files of its own, as a container does. Nodes that start at once
in one folder use each other's sockets."""
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}
SHELL = ["/bin/bash", "-c", "--"]
STARTED = "Ray runtime started."


@dataclass
class Pod:
    """A pod with its Ray node.

    component: the value of its label. number: the last of its address's. probe: the command of its readiness probe,
    where it has one.
    """

    name: str
    component: str
    number: int
    command: list[str]
    env: dict[str, str]
    log: Path
    probe: list[str] | None
    process: "subprocess.Popen[bytes] | None" = field(default=None, repr=False)
    ending: bool = False

    @property
    def space(self) -> str:
        return f"diptych-{self.name}"

    @property
    def address(self) -> str:
        return f"{NET}.{self.number}"

    def start(self) -> None:
        """Start its container, as the kubelet does."""
        self.ending = False
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env={**os.environ, **self.env},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def ready(self) -> bool:
        """Run its readiness probe, as the kubelet does. True where there is none."""
        if self.probe is None:
            return True
        return subprocess.run(self.probe, env={**os.environ, **self.env}, capture_output=True).returncode == 0

    def terminate(self) -> None:
        """Send SIGTERM to its first process, as the kubelet does."""
        self.ending = True
        if self.process is not None:
            self.process.terminate()

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """Kill all its processes at once."""
        _kill(self.space)
        if self.process is not None:
            self.process.wait()
        remove(self.space)


class Cluster:
    """The pods of a RayService, which come and go.

    folder: with logs and Secrets' files. token: Ray's, for its ports. image: of the pods that are added from now on.
    """

    def __init__(self, service: Document, folder: Path, image: Image | None) -> None:
        self.pods: list[Pod] = []
        self.folder = folder
        self.token = secrets.token_hex(32)
        self.image = image
        self._groups = dict(groups(service))
        self._added = itertools.count()

    def of(self, component: str) -> list[Pod]:
        return [pod for pod in self.pods if pod.component == component]

    @property
    def dashboard(self) -> str:
        return f"http://{self.of('head')[0].address}:8265"

    def add(self, group: str, env: Mapping[str, str] | None = None) -> Pod:
        """Start a new pod of a group, as KubeRay makes it. env: variables in place of the manifest's."""
        pod = self._pod(group, next(self._added), env or {})
        _connect(pod)
        self.pods.append(pod)
        pod.start()
        return pod

    def remove(self, pod: Pod) -> None:
        """Kill what is left of a pod, and take its network down."""
        pod.kill()
        _disconnect(pod.space, pod.number)
        self.pods.remove(pod)

    def revive(self) -> None:
        """Start again what ended at its start, as the kubelet does: Ray gives a node half a minute."""
        for pod in self.pods:
            if not pod.alive() and not pod.ending:
                pod.kill()
                pod.start()

    def wait_for(self, pod: Pod, seconds: float = 300.0) -> None:
        """Wait until a pod's Ray node runs. Raises Unable."""
        until = time.monotonic() + seconds
        while STARTED not in pod.log.read_text(errors="replace"):
            if time.monotonic() > until:
                raise Unable(f"{pod.name} does not start: {pod.log.read_text(errors='replace')[-500:]}")
            self.revive()
            time.sleep(0.5)

    def _pod(self, name: str, count: int, own_env: Mapping[str, str]) -> Pod:
        group = self._groups[name]
        template = group["template"]
        container = template["spec"]["containers"][0]
        pod_name = "head" if name == "head" else f"{name}-{count}"
        pod = Pod(
            pod_name,
            template["metadata"]["labels"]["app.kubernetes.io/component"],
            FIRST + count,
            [],
            {},
            self.folder / f"{pod_name}.log",
            None,
        )
        options = ["--head", "--port=6379"] if name == "head" else [f"--address={NET}.{FIRST}:6379"]
        start, gpus = group["rayStartParams"], resources(group)["GPU"]
        options += [f"--{key}={value}" for key, value in start.items()]
        options += [f"--num-gpus={gpus:g}"] if gpus and "num-gpus" not in start else []
        options += [f"--node-ip-address={pod.address}", "--metrics-export-port=8080", "--disable-usage-stats"]
        options += ["--block", "--include-log-monitor=false", f"--object-store-memory={OBJECTS}"]
        env = {key: value for key, value in environment(group).items() if value is not None}
        env |= {**QUIET, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, **own_env}
        if self.image is None:
            options.append(f"--temp-dir={self.folder}/ray")
            own = self.folder / pod_name
            own.mkdir()
            programs = Path(sys.executable).parent
            pod.env = {**env, LOG: str(pod.log), LOADING: str(own / "loading"), "PYTHONPATH": os.getcwd()}
            pod.env["PATH"] = f"{programs}:{os.environ['PATH']}"
            inside = ["sh", "-c", OWN_FOLDER, str(own), f"{self.folder}/ray", *SHELL, _line(options)]
            pod.command = ["ip", "netns", "exec", pod.space, *inside]
            enter = ["ip", "netns", "exec", pod.space]
        else:
            line = [*SHELL, _line(options)]
            pod.command = command(self.image, pod_name, template["spec"], line, env, pod.space, self.folder)
            enter = ["runc", "exec", pod.space]
        probe = container.get("readinessProbe", {}).get("exec")
        pod.probe = None if probe is None else [*enter, *probe["command"]]
        return pod


@contextmanager
def cluster(service: Document, replicas: Mapping[str, int], image: Image | None = None) -> Iterator[Cluster]:
    """Start all pods, the head first, and remove them after the block. Raises Unable.

    replicas: of groups that have another number of pods than their manifest says.
    """
    if os.geteuid() != 0 or shutil.which("ip") is None:
        raise Unable("network namespaces need root and iproute2 (the program ip)")
    folder = Path(f"/tmp/diptych-{secrets.token_hex(3)}")  # its sockets' paths must stay short
    (folder / "ray").mkdir(parents=True)
    started = Cluster(service, folder, image)
    try:
        _take_down()  # of a run that was killed
        run("ip", "link", "add", BRIDGE, "type", "bridge")
        run("ip", "address", "add", f"{NET}.1/24", "dev", BRIDGE)
        run("ip", "link", "set", BRIDGE, "up")
        for name, group in groups(service):
            for _ in range(replicas.get(name, group.get("replicas", 1))):
                started.wait_for(started.add(name))  # one after the other: Ray gives a node half a minute to start
        yield started
    finally:
        for pod in list(started.pods):
            started.remove(pod)
        _take_down()
        shutil.rmtree(folder, ignore_errors=True)


def _line(options: list[str]) -> str:
    return f"ulimit -n ${{RAY_START_ULIMIT_OPEN_FILES:-65536}}; ray start {' '.join(options)}"


def _connect(pod: Pod) -> None:
    """Add a pod's network namespace, behind the bridge."""
    outside = f"{BRIDGE}-{pod.number}"
    run("ip", "netns", "add", pod.space)
    run("ip", "link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", pod.space)
    run("ip", "link", "set", outside, "master", BRIDGE, "up")
    for options in (["address", "add", f"{pod.address}/24", "dev", "eth0"], ["link", "set", "eth0", "up"]):
        run("ip", "-n", pod.space, *options)
    run("ip", "-n", pod.space, "link", "set", "lo", "up")


def _disconnect(space: str, number: int) -> None:
    """Delete a pod's connection and network namespace."""
    subprocess.run(["ip", "link", "delete", f"{BRIDGE}-{number}"], capture_output=True)
    subprocess.run(["ip", "netns", "delete", space], capture_output=True)


def wait_at_most(condition: Callable[[], bool], seconds: float) -> None:
    """Wait until the condition is true, or for so many seconds."""
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.2)


def _kill(space: str) -> None:
    pids = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True).stdout
    for pid in map(int, pids.split()):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _take_down() -> None:
    """Remove every pod's namespace that there is, and the bridge."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    for space in (line.split()[0] for line in listed.splitlines() if line.startswith("diptych-")):
        _kill(space)
        remove(space)
        subprocess.run(["ip", "netns", "delete", space], capture_output=True)
    links = subprocess.run(["ip", "-brief", "link"], capture_output=True, text=True).stdout
    for link in (line.split("@")[0] for line in links.splitlines() if line.startswith(f"{BRIDGE}-")):
        subprocess.run(["ip", "link", "delete", link], capture_output=True)
    subprocess.run(["ip", "link", "delete", BRIDGE], capture_output=True)
