"""Builds the Ray Serve application: one deployment per engine, and the gateway in front of them."""

import hashlib
import json
import time
from collections.abc import Container, Sequence
from typing import Any

import ray.serve

from deployments.args import Args, GatewayArgs, LoraArgs, ModelPlacement, Placement
from deployments.gateway import Gateway
from deployments.replica import Replica

KILL_AFTER_S = 2.0
"""Seconds after drain_s before Serve kills a process that has not ended by itself."""
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
    for args in engine_args:
        for name, entry in args.engines().items():
            adapters = args.adapters(name)
            options = _options(name, entry, _version(entry, adapters))
            wait = {"wait": True} if name in wait_for else None
            replicas[name] = ray.serve.deployment(Replica).options(**options, user_config=wait).bind(entry, adapters)
    listen = gateway_args.gateway.listen
    gateway = ray.serve.deployment(Gateway).options(
        **_options("gateway", gateway_args.gateway, _digest(listen and listen.model_dump())),
        user_config={
            "args": gateway_args.model_dump(mode="json", by_alias=True, exclude_unset=True),
            "read": time.time(),
        },
    )
    return gateway.bind(gateway_args, replicas)


def changed(old: Args, new: Args) -> list[str]:
    """Return the models whose replicas must be started for `new`: those missing from `old`, or different there."""
    before = {name: _version(entry, old.adapters(name)) for name, entry in old.engines().items()}
    return [name for name, entry in new.engines().items() if before.get(name) != _version(entry, new.adapters(name))]


def _version(entry: ModelPlacement, adapters: Sequence[LoraArgs]) -> str:
    placed = entry.num_cpus, entry.num_gpus, entry.resources
    return _digest(
        [placed, *(part.model_dump(mode="json", exclude=GATEWAY_ONLY_FIELDS) for part in (entry, *adapters))]
    )


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _options(name: str, placement: Placement, version: str) -> dict[str, Any]:
    """Return a deployment's options for Ray Serve."""
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
        "ray_actor_options": {
            "num_cpus": placement.num_cpus,
            "num_gpus": placement.num_gpus,
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
