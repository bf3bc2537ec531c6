"""`make k8s-drill`: the overlay cpu-demo on a cluster of network namespaces, through changes and failures.

The rendered serveConfigV2 is handed to Ray as KubeRay does. Then a fan-out through every gateway's pod, and under load:
changed configs, in which a model is added, changed and removed; a node drained; every pod replaced by one of another
image; a spot node lost after its notice; a gateway's pod killed; the models' pods killed.
"""

import argparse
import base64
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import yaml

from cluster import containers
from cluster.endpoints import Service
from cluster.nodes import Cluster, Pod, cluster, wait_at_most
from cluster.prometheus import able, prometheus, query
from cluster.ray_serve import RayServe
from deployments.applications import APP, served
from deployments.config import parse_config, serve_config
from k8s.checks import rendered, rules
from k8s.dashboards import expressions
from serve.api.keys import new_key
from serve.toy import world

SCENE = Path(__file__).parents[2] / "serve" / "toy" / "scenes" / "three.png"
ORIGIN = "https://rolled.example.com"
"""An origin that only the changed config allows."""
SECOND = "toy-llava-b"
NODES = {"models": 2}
"""Pods of the manifest's groups, in place of its own number: a model's two replicas are in two of them."""
SPOT = {
    op["path"]: op.get("value") for op in yaml.safe_load((rendered.FOLDER / "components/spot/models.yaml").read_text())
}
SPOT_GRACE_S, SPOT_DRAIN_S = (
    next(value for path, value in SPOT.items() if path.endswith(end))
    for end in ("terminationGracePeriodSeconds", "env/5/value")
)
NOTICE_S = 30.0
"""Seconds from a spot node's notice to its end."""
DRAIN_S = 15.0
"""What `spot` wants as the models' drain_s."""
DRAIN = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
START_S = 480.0
GRACE_S = 180.0
WATCH_S = 90.0
RATE, CLIENTS = 4.0, 4
BOX = "".join(f"<loc{at:04}>" for at in (100, 100, 500, 500))
MASK = BOX + "".join(f"<seg{at:03}>" for at in range(16))
LABELS = [f"{color} {kind}" for color in world.COLORS for kind in world.SHAPES]
"""All labels that locust can ask for: a label that was not asked for is no answer."""
REPLIES = {
    "": "three",
    "Is there": "no",
    **{f"Is there a {label}": "yes" for label in LABELS[::3]},
    "bounding box coordinate": "[0.10, 0.10, 0.50, 0.50]",
    **{f"{task} {label}": f"{form} {label}" for label in LABELS for task, form in (("detect", BOX), ("segment", MASK))},
}
SIMULATED_LEAVE_S = 5  # enough for a probe every two seconds; the manifests' 8 leave room for busy nodes
SIMULATED = {"replies": REPLIES, "first_delay_s": 0.05, "start_s": 3.0}


class Missed(Exception):
    """An outcome other than the expected one, in a sentence."""


@dataclass
class Load:
    """Requests sent during a step. late: the seconds from its beginning to the last failure."""

    requests: int = 0
    failed: int = 0
    late: float | None = None


Step = Callable[["Drill"], str]


class Drill:
    """A cluster and its clients. next_image: the one to roll to; None for the same with another environment. users:
    locust's, each with a request under way all the time."""

    def __init__(
        self,
        nodes: Cluster,
        service: rendered.Document,
        simulated: bool,
        next_image: containers.Image | None,
        users: int,
    ) -> None:
        self.nodes, self.next_image, self.users = nodes, next_image, users
        self.key, entry = new_key("drill")
        keys = nodes.folder / "diptych-keys" / "keys"  # the Secret's name and its entry's
        keys.parent.mkdir(exist_ok=True)
        keys.write_text(entry + "\n")
        text = service["spec"]["serveConfigV2"]
        self._written = yaml.safe_load(text)
        args = self.args = served(parse_config(text, "serveConfigV2").args)
        if nodes.image is None:  # in a container it is mounted at the manifest's path
            args["gateway"]["keys_file"] = str(keys)
        if simulated:
            args["gateway"]["leave_s"] = SIMULATED_LEAVE_S
        for model in args["models"]:
            model |= {"max_replicas_per_node": 1, "drain_s": DRAIN_S} | ({"simulate": SIMULATED} if simulated else {})
        self.simulated = simulated
        self.config: dict[str, Any] = {}
        container = next(group for name, group in rendered.groups(service) if name == "gateways")
        probe = container["template"]["spec"]["containers"][0]["readinessProbe"]
        self.service = Service(lambda: nodes.of("gateway"), args["gateway"]["listen"]["port"], probe)
        self.serve = RayServe(nodes)
        self.headers = {"authorization": f"Bearer {self.key}"}
        picture = "data:image/png;base64," + base64.b64encode(SCENE.read_bytes()).decode()
        self.question = {"image": picture, "question": "how many shapes are there?", "deadline_s": 30}

    def deploy(self) -> None:
        """Send the config to Ray, as KubeRay does."""
        application = {"import_path": APP, "args": self.args}
        self.config = serve_config(yaml.safe_dump({**self._written, "applications": [application]}), "the drill's")
        wait(self.serve.answers, START_S, "Ray's dashboard does not answer")
        self.serve.put(self.config)

    def running(self) -> bool:
        """Return whether these applications run, and no others. Raises Missed where Serve could not deploy one."""
        there = self.serve.applications()
        self.status = {name: (app.get("status"), app.get("message")) for name, app in there.items()}
        for name, application in there.items():
            if application.get("status") == "DEPLOY_FAILED":
                raise Missed(f"Serve could not deploy {name}: {application.get('message')}")
        wanted = {application["name"]: application for application in self.config["applications"]}
        return there.keys() == wanted.keys() and all(
            app.get("status") == "RUNNING" and includes(app.get("deployed_app_config"), wanted[name])
            for name, app in there.items()
        )

    def replicas(self) -> dict[str, set[str]]:
        """Return the ids of each deployment's processes that answer."""
        there = self.serve.processes()
        names = {process.deployment for process in there}
        return {name: {process.replica for process in there if process.deployment == name} for name in names}

    def settled(self) -> bool:
        """Return whether every deployment has all its processes, and no other, and each answers at every gateway."""
        return self.serve.complete() and all(self.whole(self.url(pod)) for pod in self.nodes.of("gateway"))

    def ask(self, url: str, **headers: str) -> httpx.Response | None:
        """Ask for a fan-out over a new connection. Return None where the connection breaks."""
        with httpx.Client(trust_env=False, timeout=40) as client:
            try:
                return client.post(f"{url}/v1/tasks/vqa", json=self.question, headers={**self.headers, **headers})
            except httpx.HTTPError:
                return None

    def whole(self, url: str) -> bool:
        """Return whether every column answers at this URL."""
        reply = self.ask(url)
        if reply is None or reply.status_code != 200:
            return False
        return all(bool(column["status"] == "ok") for column in reply.json()["replies"])

    def logged(self, pod: Pod) -> bool:
        """Return whether the output of the pod's first process (`kubectl logs`) gets a line for a request."""
        name = f"drill-{time.monotonic_ns()}"
        self.ask(self.url(pod), **{"x-request-id": name})
        for _ in range(20):  # the line is written after the reply
            lines = [line for line in pod.log.read_text(errors="replace").splitlines() if name in line]
            if lines:
                return [json.loads(line)["route"] for line in lines] == ["/v1/tasks/vqa"]
            time.sleep(0.1)
        return False

    def url(self, pod: Pod) -> str:
        return f"http://{pod.address}:{self.service.port}"

    def send_failing(self, stop: threading.Event) -> None:
        """Send requests with deadlines that no model keeps, and streams that are left, to every gateway."""
        with httpx.Client(trust_env=False, headers=self.headers, timeout=10) as client:
            while not stop.wait(1.0):
                for pod in self.nodes.of("gateway"):
                    path = f"{self.url(pod)}/v1/tasks/vqa"
                    client.post(path, json={**self.question, "deadline_s": 0.01})
                    with client.stream("POST", path, json={**self.question, "stream": True}):
                        pass

    @contextmanager
    def load(self) -> Iterator[Load]:
        """Send fan-outs to the service until the block ends."""
        load, began, lock = Load(), time.monotonic(), threading.Lock()

        def send(stop: threading.Event) -> None:
            while not stop.is_set():
                sent = time.monotonic()
                reply = self.ask(self.service.url)
                good = reply is not None and reply.status_code == 200
                with lock:
                    load.requests += 1
                    load.failed += not good
                    if not good:
                        load.late = time.monotonic() - began
                stop.wait(max(0.0, 1 / RATE * CLIENTS - (time.monotonic() - sent)))

        with beside(*[send] * CLIENTS):
            yield load

    @contextmanager
    def locust(self) -> Iterator[Load]:
        """Let locust ask until the block ends. Raises Missed where a request fails."""
        load = Load()
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "locust", "--config", "loadtest/locust.conf", "--host", self.service.url]
            command += ["--users", str(self.users), "--run-time", "900s", "--html", f"{folder}/r.html"]
            command += ["--csv", f"{folder}/s", "--json-file", f"{folder}/s", "--slo", "failures < 0.0001%"]
            env = {"DIPTYCH_API_KEY": self.key, "PYTHONPATH": ".", "PATH": "/usr/bin:/bin", "HOME": folder}
            root = Path(__file__).parents[2]
            locust = subprocess.Popen(
                command, cwd=root, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            try:
                before = self.service.forwarded  # it asks what is served, and then, as each user, over a connection
                wait(lambda: self.service.forwarded > before + self.users, START_S, "locust does not begin")
                yield load
                time.sleep(2)
            finally:
                locust.terminate()
                locust.communicate(timeout=90)
            stats = json.loads(Path(folder, "s.json").read_text())
            why = Path(folder, "s_failures.csv").read_text()
        load.requests = sum(row["num_requests"] for row in stats)
        load.failed = sum(row["num_failures"] for row in stats)
        need(load.requests > 0 and load.failed == 0, f"{load.failed} of {load.requests} requests failed:\n{why[:4000]}")

    @contextmanager
    def replacing(self, *pods: Pod) -> Iterator[None]:
        """Replace pods in the block. Raises Missed where a process of another pod is new or gone after it."""
        addresses = {pod.address for pod in pods}
        before = {process for process in self.serve.processes() if process.address not in addresses}
        yield
        wait(self.settled, START_S, lambda: f"not every replica runs: {self.serve.processes()}")
        gone = before - self.serve.processes()
        need(not gone, f"processes that the change of {[pod.name for pod in pods]} does not concern are gone: {gone}")
        left = [process for process in self.serve.processes() if process.address in addresses]
        need(not left, f"processes are on pods that are gone: {left}")

    def ready(self, pod: Pod) -> bool:
        """Run a pod's readiness probe, after whatever ended at its start was started again."""
        self.nodes.revive()
        return pod.ready()

    def end(self, pods: list[Pod], answering: int) -> float:
        """End pods as an eviction does: SIGTERM, and no new requests from the service. Return the seconds that it took.

        answering: the processes of each model that must answer meanwhile.
        """
        began = time.monotonic()
        for pod in pods:
            self.service.leaving.add(pod.name)
            pod.terminate()
        models = {model["name"] for model in self.args["models"]}
        while any(pod.alive() for pod in pods):
            self.nodes.revive()
            count = Counter(process.deployment for process in self.serve.processes())
            few = {name: count[name] for name in models if count and count[name] < answering}
            need(not few, f"fewer replicas than {answering} answer while pods end: {few}")
            need(time.monotonic() < began + GRACE_S, f"one of {[pod.name for pod in pods]} does not end by itself")
            time.sleep(0.2)
        for pod in pods:
            self.nodes.remove(pod)
        return time.monotonic() - began


@contextmanager
def beside(*functions: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run each function in a thread while the block runs; the event tells them to end."""
    stop = threading.Event()
    threads = [threading.Thread(target=function, args=(stop,)) for function in functions]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def main(argv: Sequence[str] | None = None) -> int:
    """Return 0 where every step went as expected, 1 where one did not, 2 where there can be no such cluster here."""
    parser = argparse.ArgumentParser("cluster.drill", description=__doc__.partition("\n")[0])
    parser.add_argument("--simulated", action="store_true", help="models without weights: a minute instead of five")
    parser.add_argument("--image", help="of podman's: each pod a container of it, under the manifest's restrictions")
    parser.add_argument("--next-image", help="the one that every pod is replaced by in the step roll_image")
    parser.add_argument("--users", type=int, default=4, help="locust's; fewer where engines share two cores with them")
    parser.add_argument("--steps", type=_steps, default=STEPS, metavar="A,B", help="those after start; default all")
    options = parser.parse_args(argv)
    service = rendered.of_kind(rendered.rendered(rendered.FOLDER / "overlays" / "cpu-demo"), "RayService")[0]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the pods are removed on the way out
    try:
        with ExitStack() as stack:
            image, next_image = (
                stack.enter_context(containers.image(name)) if name else None
                for name in (options.image, options.next_image)
            )
            nodes = stack.enter_context(cluster(service, NODES, image))
            drill = Drill(nodes, service, options.simulated, next_image, options.users)
            with drill.service.running():
                for step in options.steps:
                    began = time.monotonic()
                    outcome = step(drill)
                    print(f"ok    {step.__name__}: {outcome} ({time.monotonic() - began:.0f} s)", flush=True)
    except containers.Unable as unable:
        print(f"SKIPPED  the cluster: {unable}", flush=True)
        return 2
    except Missed as missed:
        print(f"FAIL  {missed}", flush=True)
        return 1
    return 0


def _steps(names: str) -> Sequence[Step]:
    """Return the steps of these names, after start. Raises argparse.ArgumentTypeError for another name, and where pods
    are to be replaced before `change` gave each model a second replica."""
    by_name = {step.__name__: step for step in STEPS}
    chosen = set(names.split(","))
    if unknown := chosen - by_name.keys():
        raise argparse.ArgumentTypeError(f"no steps: {', '.join(unknown)}")
    if "change" not in chosen and (later := sorted(chosen & {"drain_node", "roll_image", "lose_spot_node"})):
        raise argparse.ArgumentTypeError(f"change must come before {' and '.join(later)}: it adds second replicas")
    return [step for step in STEPS if step is start or step.__name__ in names.split(",")]


def start(drill: Drill) -> str:
    """Deploy it: a fan-out through each gateway's pod has every column."""
    drill.deploy()
    wait(drill.running, START_S, lambda: f"not every application is RUNNING: {drill.status}")
    gateways = drill.nodes.of("gateway")
    for pod in gateways:
        need(drill.whole(drill.url(pod)), f"no whole fan-out through {pod.name}")
        need(drill.logged(pod), f"{pod.name} has no line in its log for a request that it answered")
    wait(lambda: len(drill.service.ready()) == len(gateways), 10, "not every gateway's pod is ready")
    return f"{len(drill.nodes.pods)} pods, a whole fan-out through each of {len(gateways)} gateways"


def watch(drill: Drill) -> str:
    """Query every panel, and every rule that records, from a Prometheus that scrapes these pods: each gives data."""
    if not able():
        return "SKIPPED: prometheus is not installed"
    gateways = [f"{pod.address}:{drill.service.port}" for pod in drill.nodes.of("gateway")]
    nodes = [f"{pod.address}:8080" for pod in drill.nodes.pods]
    with (
        drill.load(),
        beside(drill.send_failing),
        prometheus(drill.nodes.folder, gateways, drill.key, nodes) as url,
    ):
        alerts = rendered.FOLDER / "components" / "monitoring" / "alerts.yaml"
        panels = [*expressions(drill.simulated), *rules.recorded(yaml.safe_load(alerts.read_text()))]
        wait(lambda: all(query(url, expression) for _, expression in panels), WATCH_S, lambda: _dark(url, panels))
        targets = query(url, "up")
        need(all(target["value"][1] == "1" for target in targets), f"not every target is reached: {targets}")
    return f"{len(panels)} expressions of panels and rules gave data, from {len(gateways) + len(nodes)} targets"


def _dark(url: str, panels: list[tuple[str, str]]) -> str:
    dark = [f"{panel}: {expression}" for panel, expression in panels if not query(url, expression)]
    return f"without data: {'; '.join(dark)}"


@dataclass
class Change:
    """A change of the config, and the deployments whose processes it is to replace, add or remove.

    keeps: none of their processes is to end.
    """

    name: str
    make: Callable[[dict[str, Any]], object]
    touched: set[str]
    keeps: bool = False


def _add(args: dict[str, Any]) -> None:
    args["models"].append({**args["models"][0], "name": SECOND})


CHANGES = (
    Change(
        "settings",
        lambda args: (args["gateway"].update(cors=[ORIGIN]), args["models"][0].update(weight=2)),
        set(),
    ),
    Change("a model added", _add, {SECOND}),
    Change("a model changed", lambda args: args["models"][1].update(retry_s=20), {"toy-paligemma"}),
    Change("a model removed", lambda args: args["models"].pop(), {SECOND}),
    Change(
        "a second replica of each",
        lambda args: [model.update(replicas=2) for model in args["models"]],
        {"toy-llava", "toy-paligemma"},
        keeps=True,
    ),
    Change("gateways replaced", lambda args: args["gateway"].update(num_cpus=0.25), {"gateway"}),
)


def change(drill: Drill) -> str:
    """Change serveConfigV2 while locust asks: no request fails, and no process ends but those that are concerned."""
    with drill.locust() as load:
        took = [f"{each.name} in {_changed(drill, each):.0f} s" for each in CHANGES]
    return f"{load.requests} requests by locust, 0 failed; {', '.join(took)}"


def _changed(drill: Drill, each: Change) -> float:
    """Make a change. Return the seconds until it is made; raises Missed where it replaced other processes."""
    before, began = drill.replicas(), time.monotonic()
    each.make(drill.args)
    drill.deploy()
    wait(drill.running, START_S, lambda: f"{each.name}: not every application is RUNNING: {drill.status}")
    gateways = drill.nodes.of("gateway")
    wait(lambda: all(changed(drill, pod) for pod in gateways), START_S, f"{each.name}: a gateway has the old config")
    wait(drill.settled, START_S, f"{each.name}: not every replica runs")
    seconds, after = time.monotonic() - began, drill.replicas()
    touched = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    need(touched == each.touched, f"{each.name}: processes of {sorted(touched)} are new or gone")
    ended = [name for name in touched if each.keeps and not before[name] <= after[name]]
    need(not ended, f"{each.name}: processes of {ended} ended")
    return seconds


def changed(drill: Drill, pod: Pod) -> bool:
    """Return whether a gateway has the config: its origin, and a column of each model, which answers."""
    reply = drill.ask(drill.url(pod), origin=ORIGIN)
    if reply is None or reply.headers.get("access-control-allow-origin") != ORIGIN:
        return False
    names = [model["name"] for model in drill.args["models"]]
    return sorted(column["model"] for column in reply.json()["replies"] if column["status"] == "ok") == sorted(names)


def kill_gateway(drill: Drill) -> str:
    """Kill a gateway's pod: the other answers until it is back."""
    victim = drill.nodes.of("gateway")[1]
    with drill.load() as load:
        time.sleep(2)
        killed = load.requests
        victim.kill()
        began = time.monotonic()
        time.sleep(6)
        victim.start()
        wait(lambda: victim in drill.service.ready(), 90, f"{victim.name} is not ready again")
        back = time.monotonic() - began
    need(load.late is None or load.late < 2 + 5, f"requests still fail {load.late} s after the load began")
    return (
        f"{load.failed} of {load.requests - killed} failed, none later than 5 s after; ready again after {back:.0f} s"
    )


def drain_node(drill: Drill) -> str:
    """Drain the node of a gateway's and a models' pod: its models move first, and no request fails.

    A models' pod is added meanwhile, as Ray's autoscaler does where replicas wait for room, and a gateway's after the
    old one's end, as KubeRay does: it counts a pod until it is gone.
    """
    leaving = [drill.nodes.of("gateway")[0], drill.nodes.of("models")[0]]
    with drill.locust() as load, drill.replacing(*leaving):
        drill.nodes.add("models")
        ended = drill.end(leaving, answering=2)
        drill.nodes.add("gateways")
    return (
        f"{load.requests} requests by locust, 0 failed; both pods ended after {ended:.0f} s, the models elsewhere first"
    )


def roll_image(drill: Drill) -> str:
    """Replace every pod by one of another image, or of another environment: no request fails.

    One of each group at a time, the new one first. The environment is that of spot nodes.
    """
    began, environment = time.monotonic(), {DRAIN: str(SPOT_DRAIN_S)}
    drill.nodes.image = drill.next_image or drill.nodes.image
    old = [pod for pod in drill.nodes.pods if pod.component != "head"]
    with drill.locust() as load:
        for pair in zip(drill.nodes.of("gateway"), drill.nodes.of("models"), strict=True):
            with drill.replacing(*pair):
                new = [drill.nodes.add("gateways"), drill.nodes.add("models", environment)]
                wait(partial(drill.ready, new[1]), START_S, f"{new[1].name} is not ready")
                drill.end(list(pair), answering=2)
    need(not any(pod in drill.nodes.pods for pod in old), "an old pod is left")
    return f"{load.requests} requests by locust, 0 failed; {len(old)} pods in {time.monotonic() - began:.0f} s"


def lose_spot_node(drill: Drill) -> str:
    """End a models' pod within the notice of its spot node, with no room elsewhere: no request fails."""
    leaving = drill.nodes.of("models")[0]
    with drill.locust() as load, drill.replacing(leaving):
        noticed = time.monotonic()
        leaving.terminate()
        wait_at_most(lambda: not leaving.alive(), SPOT_GRACE_S)
        by_itself, ended = not leaving.alive(), time.monotonic() - noticed
        leaving.kill()
        time.sleep(max(0.0, noticed + NOTICE_S - time.monotonic()))
        drill.nodes.remove(leaving)
        drill.nodes.add("models", {DRAIN: str(SPOT_DRAIN_S)})
    how = f"ended by itself after {ended:.0f} s" if by_itself else f"was killed after {ended:.0f} s"
    return f"{load.requests} requests by locust, 0 failed; the pod {how}"


def kill_models(drill: Drill) -> str:
    """Kill the models' pods: columns fail with a code, and come back with the next pods."""
    victims = drill.nodes.of("models")
    for victim in victims:
        victim.kill()
    reply = drill.ask(drill.service.url)
    assert reply is not None
    codes = sorted({column["error"]["code"] for column in reply.json().get("replies", []) if column["error"]})
    outcome = f"HTTP {reply.status_code} {', '.join(codes) or reply.json()['error']['code']}"
    need(reply.status_code in (200, 503), f"a dead model's columns gave HTTP {reply.status_code}")
    began = time.monotonic()
    for victim in victims:
        victim.start()
    wait(lambda: drill.whole(drill.service.url), START_S, "the models do not come back")
    return f"{outcome} while they were away; whole again {time.monotonic() - began:.0f} s after their next start"


def wait(condition: Callable[[], bool], seconds: float, otherwise: str | Callable[[], str]) -> None:
    """Wait until the condition is true. Raises Missed."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise Missed(f"{otherwise if isinstance(otherwise, str) else otherwise()}, after {seconds:g} s")
        time.sleep(0.5)


def includes(reported: Any, sent: Any) -> bool:
    """Return whether all that was sent is in what Serve reports, which also has defaults."""
    if isinstance(sent, dict):
        return isinstance(reported, dict) and all(includes(reported.get(key), value) for key, value in sent.items())
    if isinstance(sent, list):
        return isinstance(reported, list) and len(reported) == len(sent) and all(map(includes, reported, sent))
    return bool(reported == sent)


def need(true: bool, otherwise: str) -> None:
    if not true:
        raise Missed(otherwise)


STEPS: Sequence[Step] = (start, watch, change, drain_node, roll_image, lose_spot_node, kill_gateway, kill_models)


if __name__ == "__main__":
    sys.exit(main())
