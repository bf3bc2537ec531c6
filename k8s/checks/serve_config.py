"""Checks a RayService's serveConfigV2: Ray's schema, unknown keys, our own schema for Diptych's part, and room."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError

from deployments.applications import APP, APPS
from deployments.config import ConfigError, parse_config
from deployments.deploy import printed
from k8s.checks.rendered import GPU, Document, groups


def serve_config(service: Document) -> Iterator[str]:
    """Yield every fault of the Serve config, and of the cluster's room for it."""
    from ray.serve.schema import ServeDeploySchema

    text = service["spec"]["serveConfigV2"]
    try:
        whole = yaml.safe_load(text)
        ServeDeploySchema.model_validate(whole, extra="forbid")
    except yaml.YAMLError as error:
        yield f"serveConfigV2: {' '.join(str(error).split())[:300]}"
        return
    except ValidationError as error:
        for fault in error.errors():
            reason = "there is no such option" if fault["type"] == "extra_forbidden" else fault["msg"]
            yield f"serveConfigV2: {'.'.join(map(str, fault['loc']))}: {reason}"
        return
    paths = {application["import_path"] for application in whole["applications"]}
    if APP in paths:
        yield "serveConfigV2: Serve takes an application for each model, which `diptych deploy FILE --print` writes"
    elif paths & set(APPS):
        try:
            config = parse_config(text, "serveConfigV2")
        except ConfigError as refused:
            yield str(refused)
        else:
            yield from room(service, config.args)


def is_made(overlay: Path) -> Iterator[str]:
    """Yield a fault where an overlay's applications.yaml is not what its serve.yaml gives."""
    written, generated = overlay / "serve.yaml", overlay / "applications.yaml"
    if not written.exists():
        return
    try:
        if not generated.exists() or generated.read_text() != printed(written):
            yield f"{generated} is not made of {written.name}: make k8s-config"
    except ConfigError as refused:
        yield str(refused)


class Kind(NamedTuple):
    """The replicas of a deployment, or their parts where they span nodes.

    need: of each, by resource; fewest, most: their number; per_pod: most in one. apart: two are to be in two pods.
    """

    name: str
    need: dict[str, float]
    fewest: int
    most: int
    per_pod: int
    apart: bool = True

    def fits(self, pod: "Pod") -> bool:
        return pod.held[self.name] < self.per_pod and all(
            pod.free.get(what, 0) > amount - 1e-6 for what, amount in self.need.items()
        )


class Pod:
    """A pod with what is free in it, and the number of replicas that it holds, by name."""

    def __init__(self, free: Mapping[str, float]) -> None:
        self.free = dict(free)
        self.held: Counter[str] = Counter()

    def add(self, kind: Kind, sign: int = 1) -> None:
        self.held[kind.name] += sign
        for what, amount in kind.need.items():
            self.free[what] = self.free.get(what, 0) - sign * amount


def room(service: Document, args: Any) -> Iterator[str]:
    """Yield each replica that fits no pod, each resource of which there is too little, each model that may find no room
    where others came first, and each that takes more of a GPU than its part."""
    sizes = [
        resources(group)
        for name, group in groups(service)
        for _ in range(1 if name == "head" else group["maxReplicas"])
    ]
    kinds = list(_kinds(args))
    faults = [*_too_large(kinds, sizes), *_too_many(kinds, sizes)]
    yield from faults or _shut_out(kinds, sizes)
    yield from _on_one_pod(kinds, sizes)
    for name, entry in args.engines().items():
        share = entry.engine_args.get("gpu_memory_utilization", 0)
        if entry.group is None and 0 < entry.num_gpus < share:
            yield (
                f"{name} takes {share:g} of a GPU's memory and reserves {entry.num_gpus:g} of the GPU: "
                "engines beside it find too little"
            )


def _kinds(args: Any) -> Iterator[Kind]:
    for name, placed in {"gateway": args.gateway, **args.engines()}.items():
        gpus = placed.num_gpus if name == "gateway" else args.reserved_gpus(name)
        need = {"CPU": placed.num_cpus, "GPU": gpus, **placed.resources}
        fewest = placed.replicas if placed.autoscaling is None else placed.autoscaling.min_replicas
        if name != "gateway" and placed.spans_nodes:
            first, *others = placed.bundles()
            most, parts = placed.max_replicas, placed.max_replicas * len(others)
            yield Kind(name, first, fewest, most, most, apart=False)
            yield Kind(f"a part of {name}", others[0], fewest * len(others), parts, parts, apart=False)
        else:
            yield Kind(name, need, fewest, placed.max_replicas, placed.max_replicas_per_node or placed.max_replicas)


def _too_large(kinds: list[Kind], sizes: list[dict[str, float]]) -> Iterator[str]:
    for kind in kinds:
        for what, amount in kind.need.items():
            largest = max(size.get(what, 0) for size in sizes)
            if amount > largest:
                yield f"{kind.name} asks for {amount:g} {what}, and no pod has more than {largest:g}"


def _too_many(kinds: list[Kind], sizes: list[dict[str, float]]) -> Iterator[str]:
    for what in sorted({what for kind in kinds for what in kind.need}):
        wanted = sum(kind.most * kind.need.get(what, 0) for kind in kinds)
        available = sum(size.get(what, 0) for size in sizes)
        if wanted > available:
            yield f"the Serve config asks for {wanted:g} {what} together, and the groups have {available:g}"


def _shut_out(kinds: list[Kind], sizes: list[dict[str, float]]) -> Iterator[str]:
    """Place each kind last, after the others, each of which goes where it is most in the way."""
    for last in kinds:
        for others in (kinds, kinds[::-1]):
            pods = [Pod(size) for size in sizes]
            order = [kind for kind in others if kind is not last for _ in range(kind.most)] + [last] * last.most
            shut_out = next((kind for kind in order if not _place(kind, last, pods)), None)
            if shut_out is not None:
                yield (
                    f"{shut_out.name} may find no pod with room where the others are placed first: fence pods off by a "
                    "resource that only some models ask for"
                )
                return


def _place(kind: Kind, last: Kind, pods: list[Pod]) -> bool:
    """Place a replica where it takes the room of `last`. Return False where it fits nowhere."""

    def in_the_way(pod: Pod) -> tuple[bool, bool]:
        before = last.fits(pod)
        pod.add(kind)
        after = last.fits(pod)
        pod.add(kind, -1)
        return before and not after, before

    fitting = [pod for pod in pods if kind.fits(pod)]
    if fitting:
        max(fitting, key=in_the_way).add(kind)
    return bool(fitting)


def _on_one_pod(kinds: list[Kind], sizes: list[dict[str, float]]) -> Iterator[str]:
    """Find models all of whose replicas one pod may take, where there are others."""
    for kind in (kind for kind in kinds if kind.apart):
        takes = []
        for pod in map(Pod, sizes):
            while kind.fits(pod) and pod.held[kind.name] < kind.most:
                pod.add(kind)
            takes.append(pod.held[kind.name])
        if kind.fewest > 1 and sum(map(bool, takes)) > 1 and max(takes) >= kind.fewest:
            yield f"all {kind.fewest} replicas of {kind.name} may be in one pod: set its max_replicas_per_node"


def resources(group: Document) -> dict[str, float]:
    """Return the resources that `ray start` takes from a group's start parameters and its container's limits."""
    start = group["rayStartParams"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    own = yaml.safe_load(yaml.safe_load(start["resources"])) if "resources" in start else {}
    cards = sum(float(amount) for name, amount in limits.items() if GPU.fullmatch(name))
    return {
        "CPU": float(start.get("num-cpus", limits["cpu"])),
        "GPU": float(start.get("num-gpus", cards)),
        **{name: float(amount) for name, amount in own.items()},
    }
