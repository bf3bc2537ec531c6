"""Says where each replica lands when nodes of two sizes join in a random order, and whether that is right.

`PYTHONPATH=tests python -m cluster.placement`: the head of the overlay multi-node in a network namespace, its GPUs
pretended, its models without weights. It is sent a config while there is no other node, as KubeRay sends it. Then, 20
times: a large node and two small ones join, in a random order, with pauses; what landed where is looked at; the nodes
end. The models that go to any small node have two replicas, one a node at most, which fill them; the model for the
large node needs all its GPUs.
"""

import argparse
import random
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import yaml

from cluster.containers import Unable
from cluster.nodes import Cluster, cluster, wait_at_most
from cluster.ray_serve import RayServe
from deployments.applications import GATEWAYS, served
from deployments.args import EngineArgs
from deployments.config import parse_config, serve_config
from k8s.checks import rendered

GROUPS = ("large", "models", "models")
"""The group of each node that joins."""
LONGEST_PAUSE_S = 5.0
START_S, PLACED_S, GONE_S = 240.0, 240.0, 60.0
OVERLAY = rendered.FOLDER / "overlays" / "multi-node"


def main(argv: Sequence[str] | None = None) -> int:
    """Return 0 where all landed right in every trial, 1 where one did not, 2 where no cluster can be here."""
    parser = argparse.ArgumentParser("cluster.placement", description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--without-fences", action="store_true", help="without what keeps the models apart")
    options = parser.parse_args(argv)
    service = rendered.of_kind(rendered.rendered(OVERLAY), "RayService")[0]
    config = simulated(service, fenced=not options.without_fences)
    entries = parse_config(yaml.safe_dump(config), "the trials'").args.engines()
    draw, right = random.Random(options.seed), 0
    try:
        with cluster(service, dict.fromkeys(("gateways", *GROUPS), 0)) as nodes:
            serve = RayServe(nodes)
            wait_at_most(serve.answers, START_S)
            models = [application for application in config["applications"] if application["import_path"] != GATEWAYS]
            serve.put({**config, "applications": models})
            for trial in range(options.trials):
                began = time.monotonic()
                joined = draw.sample(GROUPS, len(GROUPS))
                landed = place(nodes, serve, joined, draw, sum(entry.replicas for entry in entries.values()))
                faults = list(wrong(landed, entries))
                right += not faults
                head = f"{'FAIL' if faults else 'ok  '}  {trial + 1}: {', '.join(joined)}"
                where = [f"{name}: {', '.join(sorted(places))}" for name, places in sorted(landed.items())]
                print(f"{head} ({time.monotonic() - began:.0f} s)", *where, *faults, sep="\n      ", flush=True)
    except Unable as unable:
        print(f"SKIPPED  the cluster: {unable}", flush=True)
        return 2
    print(f"right {right} of {options.trials} times", flush=True)
    return 0 if right == options.trials else 1


def simulated(service: rendered.Document, fenced: bool) -> dict[str, Any]:
    """Return the overlay's Serve config with models that need no weights: those that always have a replica.

    fenced: with the resource of small nodes, and one replica a node at most.
    """
    models = []
    for entry in served(parse_config(service["spec"]["serveConfigV2"], "serveConfigV2").args)["models"]:
        scaling = entry.pop("autoscaling", None)
        if scaling is not None:
            entry |= {"replicas": 2, "max_replicas_per_node": 1}
            if not fenced:
                del entry["resources"], entry["max_replicas_per_node"]
        if scaling is None or scaling["min_replicas"] > 0:
            models.append({**entry, "simulate": {"replies": "word"}, "engine_metrics": False})
    application = {"import_path": "deployments.app:build", "args": {"models": models}}
    return serve_config(yaml.safe_dump({"proxy_location": "Disabled", "applications": [application]}), "the trials'")


def place(
    nodes: Cluster, serve: RayServe, joined: Sequence[str], draw: random.Random, replicas: int
) -> dict[str, list[str]]:
    """Let nodes of these groups join, and end. Return the names of the pods in which each model's replicas ran."""
    pods = []
    for group in joined:
        time.sleep(draw.uniform(0, LONGEST_PAUSE_S))
        pods.append(nodes.add(group))
    names = {pod.address: pod.name for pod in pods}

    def placed() -> bool:
        nodes.revive()
        return len(serve.processes()) == replicas

    wait_at_most(placed, PLACED_S)
    landed = defaultdict(list)
    for process in serve.processes():
        landed[process.deployment].append(names.get(process.address, process.address))
    for pod in pods:
        nodes.remove(pod)
    wait_at_most(lambda: not serve.processes(), GONE_S)
    return landed


def wrong(landed: dict[str, list[str]], entries: dict[str, EngineArgs]) -> list[str]:
    """Return what is wrong with where replicas are, as sentences."""
    faults = []
    for name, entry in entries.items():
        places = landed.get(name, [])
        group = "large" if "large" in entry.resources else "models"
        if len(places) != entry.replicas:
            faults.append(f"{len(places)} of {entry.replicas} replicas of {name} were placed")
        if not all(place.startswith(f"{group}-") for place in places):
            faults.append(f"{name} is where another model belongs")
        if len(set(places)) < len(places):
            faults.append(f"{name} has two replicas on one node")
    return faults


if __name__ == "__main__":
    sys.exit(main())
