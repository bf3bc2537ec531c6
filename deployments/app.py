"""Builds the Ray Serve applications: one for the gateways, and one for each model or group of models.

Each starts, changes, fails and ends by itself. Gateways learn of models by their `user_config`, which changes without a
restart.
"""

import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Container
from typing import Any

import ray.serve

from deployments.applications import GATEWAY_ONLY_FIELDS, scale, served
from deployments.args import Args, EngineArgs, GatewayArgs, LoraArgs, ModelPlacement, Placement
from deployments.gateway import Gateway
from deployments.group_scheduler import SCHEDULER, GroupScheduler
from deployments.replica import GroupPlace, Replica

FOREVER = 2**31 - 1
GATEWAY_TRIES = 3
"""Starts of a gateway on one machine before `diptych serve` says that it cannot; on a cluster they have no end."""


def build(args: Args) -> ray.serve.Application:
    """Refuse a config that was written for people: Serve takes the applications that are made of it."""
    raise ValueError(
        "Serve takes an application for each model: `diptych deploy FILE` sends them to Ray, "
        "`diptych deploy FILE --print` writes them."
    )


def build_gateways(args: GatewayArgs) -> ray.serve.Application:
    """Build the gateways' application. What they serve is in the `user_config` of their deployment.

    args: what a running gateway cannot change: its port, its resources.
    """
    return _gateway(args)


def build_models(args: Args) -> ray.serve.Application:
    """Build the application of one model, or of one group's models, in `args`."""
    (application,) = model_applications(args).values()
    return application


def gateway_application(args: Args) -> ray.serve.Application:
    """Build the gateways' application for these args, which are read anew where the gateways run already."""
    return _gateway(args.gateway, {"args": served(args), "read": time.time()})


def model_applications(*configs: Args, refuse: Container[str] = ()) -> dict[str, ray.serve.Application]:
    """Build the application of each model or group of models in these configs, by name.

    Where two configs have the same engine in the same application, the later one wins. refuse: models of which a
    replica that cannot be loaded is to fail at once.
    """
    replicas: defaultdict[str, dict[str, ray.serve.Application]] = defaultdict(dict)
    groups: dict[str, tuple[Args, str]] = {}
    for args in configs:
        for name, entry in args.engines().items():
            application = args.application(name)
            replicas[application][name] = _replica(args, entry, refuse=name in refuse)
            if entry.group is not None:
                groups[application] = args, entry.group
    return {
        application: _scheduler(*groups[application], members) if application in groups else members[application]
        for application, members in replicas.items()
    }


def changed(old: Args, new: Args) -> list[str]:
    """Return the models whose replicas must be started for `new`: those missing from `old`, or different there."""
    before = {name: _version(old, entry) for name, entry in old.engines().items()}
    return [name for name, entry in new.engines().items() if before.get(name) != _version(new, entry)]


def _gateway(args: GatewayArgs, user_config: dict[str, Any] | None = None) -> ray.serve.Application:
    options = _options("gateway", args, _digest(args.listen and args.listen.model_dump()), args.num_gpus)
    options["user_config"] = user_config
    options["max_constructor_retry_count"] = FOREVER if user_config is None else GATEWAY_TRIES
    return ray.serve.deployment(Gateway).options(**options).bind(args.listen)


def _replica(args: Args, entry: EngineArgs, refuse: bool) -> ray.serve.Application:
    options = _options(entry.name, entry, _version(args, entry), args.reserved_gpus(entry.name))
    options["user_config"] = {"refuse": refuse}
    options["max_constructor_retry_count"] = 1 if refuse else FOREVER
    adapters = args.adapters(entry.name)
    return ray.serve.deployment(Replica).options(**options).bind(entry, adapters, _place(args, entry))


def _version(args: Args, entry: EngineArgs) -> str:
    placed = entry.num_cpus, entry.num_gpus, args.reserved_gpus(entry.name), entry.resources, _place(args, entry)
    parts: list[ModelPlacement | LoraArgs] = [entry, *args.adapters(entry.name)]
    return _digest([placed, *(part.model_dump(mode="json", exclude=GATEWAY_ONLY_FIELDS) for part in parts)])


def _place(args: Args, entry: EngineArgs) -> GroupPlace | None:
    """Return what a replica has to know of its group."""
    if entry.group is None:
        return None
    group = args.groups[entry.group]
    others = max(0, len(args.members(entry.group)) - group.awake)
    return GroupPlace(entry.group, group.sleep_level, group.max_running, others)


def _scheduler(args: Args, name: str, replicas: dict[str, ray.serve.Application]) -> ray.serve.Application:
    """Return a group's application: the deployment that gives its models their turns, with theirs.

    Only one scheduler may run at a time.
    """
    group, members = args.groups[name], [entry.name for entry in args.members(name)]
    options = {
        **_options(f"{SCHEDULER}{name}", Placement(num_cpus=0), _digest([group.model_dump(), members]), 0),
        "max_surge_percent": 0,
        "max_constructor_retry_count": FOREVER,
    }
    return ray.serve.deployment(GroupScheduler).options(**options).bind(group, members, list(replicas.values()))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _options(name: str, placement: Placement, version: str, num_gpus: float) -> dict[str, Any]:
    """Return a deployment's options for Ray Serve. num_gpus: reserved for each replica."""
    if isinstance(placement, ModelPlacement) and placement.spans_nodes:
        # of each bundle's GPU vLLM's worker there takes hold; the replica itself has none
        place: dict[str, Any] = {
            "ray_actor_options": {"num_cpus": placement.num_cpus},
            "placement_group_bundles": placement.bundles(),
            "placement_group_strategy": "PACK",
        }
    else:
        place = {
            "ray_actor_options": {
                "num_cpus": placement.num_cpus,
                "num_gpus": num_gpus,
                "resources": placement.resources,
            },
            "max_replicas_per_node": placement.max_replicas_per_node,
        }
    return {
        **scale(placement),
        "name": name,
        # Without one Serve starts every replica anew at each `ray.serve.run`. Where it builds the application by itself
        # (`diptych deploy`, RayService) it puts its own in this place: a hash of the application's args.
        "version": version,
        "_internal": True,
        **place,
        "max_surge_percent": 100 if placement.surges else 0,
        # A dead engine is noticed after three failed checks; a model that loads answers them, so they may be quick.
        "health_check_period_s": 1,
        "health_check_timeout_s": 30,
        "graceful_shutdown_wait_loop_s": 0.1,
    }
