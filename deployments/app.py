"""Builds the Ray Serve application: one deployment per engine, and the gateway in front of them."""

import hashlib
import json
import time
from collections.abc import Container, Sequence
from typing import Any

import ray.serve

from deployments.args import Args, EngineArgs, GatewayArgs, LoraArgs, ModelPlacement, Placement
from deployments.gateway import Gateway
from deployments.group_scheduler import GroupScheduler
from deployments.replica import GroupPlace, Replica

KILL_AFTER_S = 2.0
"""Seconds after drain_s before Serve kills a process that has not ended by itself."""
SCHEDULER = "scheduler of "
"""Beginning of the name of a group's scheduler; no model's name has a space."""
GATEWAY_ONLY_FIELDS = {"replicas", "autoscaling", "max_ongoing_requests", "keeps_pictures", "weight"}
"""Fields of an entry that only the gateway and Serve read: changing one restarts no replica."""


def build(args: Args) -> ray.serve.Application:
    """Build the application of a Serve config's `args`, with its models in catalogue order.

    A deployment has the name of the model whose engine it holds; LoRA adapters on that engine have none of their own. A
    replica counts as started once its model is loaded, so that a cluster is not upgraded before it can answer.
    """
    return application(args, [args], args.engines())


def application(
    gateway_args: Args, engine_args: Sequence[Args], wait_for: Container[str] = ()
) -> ray.serve.Application:
    """Build gateways that serve `gateway_args`, in front of the engines of all `engine_args`.

    Where two of them name the same engine, the later one wins. wait_for: models whose replicas count as started only
    once they are loaded.
    """
    replicas = {}
    schedulers = {}
    for args in engine_args:
        for group in args.groups:
            schedulers[group] = _scheduler(args, group)
        for name, entry in args.engines().items():
            adapters = args.adapters(name)
            options = _options(name, entry, _version(args, entry), args.reserved_gpus(name))
            options["user_config"] = {"wait": True} if name in wait_for else None
            place = _place(args, entry)
            scheduler = None if entry.group is None else schedulers[entry.group]
            replicas[name] = ray.serve.deployment(Replica).options(**options).bind(entry, adapters, place, scheduler)
    listen = gateway_args.gateway.listen
    gateway = ray.serve.deployment(Gateway).options(
        **_options(
            "gateway", gateway_args.gateway, _digest(listen and listen.model_dump()), gateway_args.gateway.num_gpus
        ),
        user_config={
            "args": gateway_args.model_dump(mode="json", by_alias=True, exclude_unset=True),
            "read": time.time(),
        },
    )
    return gateway.bind(gateway_args, replicas)


def changed(old: Args, new: Args) -> list[str]:
    """Return the models whose replicas must be started for `new`: those missing from `old`, or different there."""
    before = {name: _version(old, entry) for name, entry in old.engines().items()}
    return [name for name, entry in new.engines().items() if before.get(name) != _version(new, entry)]


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


def _scheduler(args: Args, name: str) -> ray.serve.Application:
    """Return the deployment that gives a group's models their turns. Only one may run at a time."""
    group, members = args.groups[name], [entry.name for entry in args.members(name)]
    options = {
        **_options(f"{SCHEDULER}{name}", Placement(num_cpus=0), _digest([group.model_dump(), members]), 0),
        "max_surge_percent": 0,
    }
    return ray.serve.deployment(GroupScheduler).options(**options).bind(group, members)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _options(name: str, placement: Placement, version: str, num_gpus: float) -> dict[str, Any]:
    """Return a deployment's options for Ray Serve. num_gpus: reserved for each replica."""
    count: dict[str, object] = (
        {"num_replicas": placement.replicas}
        if placement.autoscaling is None
        else {"autoscaling_config": placement.autoscaling.config()}
    )
    leave_s = placement.leave_s if isinstance(placement, GatewayArgs) else 0
    return {
        **count,
        "name": name,
        # Without one Serve starts every replica anew at each `ray.serve.run`. Where it builds the application by itself
        # (`serve deploy`, RayService) it puts its own in this place: a hash of the whole args.
        "version": version,
        "_internal": True,
        "max_replicas_per_node": placement.max_replicas_per_node,
        "ray_actor_options": {
            "num_cpus": placement.num_cpus,
            "num_gpus": num_gpus,
            "resources": placement.resources,
        },
        "max_ongoing_requests": placement.max_ongoing_requests,
        "max_surge_percent": 100 if placement.surges else 0,
        # A dead engine is noticed after three failed checks; a model that loads answers them, so they may be quick.
        "health_check_period_s": 1,
        "health_check_timeout_s": 30,
        "graceful_shutdown_wait_loop_s": 0.1,
        "graceful_shutdown_timeout_s": placement.drain_s + KILL_AFTER_S + leave_s,
    }
