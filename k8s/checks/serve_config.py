"""Checks a RayService's serveConfigV2: Ray's schema, unknown keys, our own schema for Diptych's part, and room."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import ValidationError

from deployments.config import APP, ConfigError, parse_config
from k8s.checks.rendered import Document, groups


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
    if any(application["import_path"] == APP for application in whole["applications"]):
        try:
            config = parse_config(text, "serveConfigV2")
        except ConfigError as refused:
            yield str(refused)
        else:
            yield from room(service, config.args)


def room(service: Document, args: Any) -> Iterator[str]:
    """Yield each replica that fits no pod, and each resource of which the fewest replicas want more than there is."""
    available: Counter[str] = Counter()
    largest: Counter[str] = Counter()
    for name, group in groups(service):
        pod = Counter(resources(group))
        largest |= pod
        for _ in range(1 if name == "head" else group["maxReplicas"]):
            available += pod
    wanted: Counter[str] = Counter()
    for name, placed in {"gateway": args.gateway, **args.engines()}.items():
        gpus = placed.num_gpus if name == "gateway" else args.reserved_gpus(name)
        for what, amount in {"CPU": placed.num_cpus, "GPU": gpus, **placed.resources}.items():
            wanted[what] += placed.max_replicas * amount
            if amount > largest[what]:
                yield f"{name} asks for {amount:g} {what}, and no pod has more than {largest[what]:g}"
    for what, amount in wanted.items():
        if amount > available[what]:
            yield f"the Serve config asks for {amount:g} {what} together, and the groups have {available[what]:g}"


def resources(group: Document) -> dict[str, Any]:
    """Return the resources that `ray start` takes from a group's start parameters and its container's limits."""
    start = group["rayStartParams"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    own = yaml.safe_load(yaml.safe_load(start["resources"])) if "resources" in start else {}
    return {
        "CPU": float(start.get("num-cpus", limits["cpu"])),
        "GPU": float(start.get("num-gpus", limits.get("nvidia.com/gpu", 0))),
        **{name: float(amount) for name, amount in own.items()},
    }
