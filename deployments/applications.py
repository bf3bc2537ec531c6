"""Makes the applications of a Serve config: one for the gateways, and one for each model or group of models.

A config is written with one application, whose `args` say what is served. Serve gives all of an application one
version, so a change there would start every model anew: it gets these instead. Imports no Ray.
"""

from typing import Any

from deployments.args import APPLICATION, Args, EngineArgs, GatewayArgs, Placement
from deployments.autoscaling import fixed

APP = "deployments.app:build"
"""The import path of the application that people write."""
GATEWAYS, MODELS = "deployments.app:build_gateways", "deployments.app:build_models"
"""The import paths of those that are made of it."""
APPS = (APP, GATEWAYS, MODELS)
KILL_AFTER_S = 2.0
"""Seconds after drain_s before Serve kills a process that has not ended by itself."""
GATEWAY_ONLY_FIELDS = {
    "replicas",
    "autoscaling",
    "max_ongoing_requests",
    "keeps_pictures",
    "weight",
    "task_weights",
    "required",
}
"""Fields of a model's entry that only the gateway and Serve read: changing one restarts no replica."""
RESTARTING_FIELDS = ("listen", "num_cpus", "num_gpus", "resources", "max_replicas_per_node", "surge")
"""Fields of the gateway's that a running one cannot change."""


def applications(args: Args) -> list[dict[str, Any]]:
    """Return the applications for a Serve config: the gateways', then one for each model or group of models.

    A change of an application's `args` or import path starts its processes anew; its `deployments` change in place.
    """
    whole = served(args)
    gateway = whole.get("gateway", {})
    apps: list[dict[str, Any]] = [
        {
            "name": APPLICATION,
            "route_prefix": "/",
            "import_path": GATEWAYS,
            "args": {key: value for key, value in gateway.items() if key in RESTARTING_FIELDS},
            "deployments": [{"name": "gateway", **scale(args.gateway), "user_config": {"args": whole, "hold": True}}],
        }
    ]
    engines = args.engines()
    for application in dict.fromkeys(args.application(name) for name in engines):
        inside = [name for name in engines if args.application(name) == application]
        entries = [entry for entry in whole["models"] if entry["name"] in inside or entry.get("base") in inside]
        group = engines[inside[0]].group
        apps.append(
            {
                "name": application,
                "route_prefix": None,
                "import_path": MODELS,
                "args": {
                    "models": [
                        {key: value for key, value in entry.items() if key not in GATEWAY_ONLY_FIELDS}
                        for entry in entries
                    ],
                    **({} if group is None else {"groups": {group: whole["groups"][group]}}),
                },
                "deployments": [
                    {"name": name, **_without_waiting(scale(engines[name]), engines[name])} for name in inside
                ],
            }
        )
    return apps


def _without_waiting(options: dict[str, Any], entry: EngineArgs) -> dict[str, Any]:
    """Return a model's options so that its application counts as running before its processes do."""
    if entry.required or entry.autoscaling is not None or entry.group is not None:
        return options
    del options["num_replicas"]
    return {**options, "autoscaling_config": fixed(entry.replicas)}


def served(args: Args) -> dict[str, Any]:
    """Return args as JSON, for a gateway's user_config."""
    return args.model_dump(mode="json", by_alias=True, exclude_unset=True)


def scale(placement: Placement) -> dict[str, Any]:
    """Return those of a deployment's options for Serve that change without a restart."""
    leave_s = placement.leave_s if isinstance(placement, GatewayArgs) else 0
    count: dict[str, Any] = (
        {"num_replicas": placement.replicas}
        if placement.autoscaling is None
        else {"autoscaling_config": placement.autoscaling.config()}
    )
    return {
        **count,
        "max_ongoing_requests": placement.max_ongoing_requests,
        "graceful_shutdown_timeout_s": placement.drain_s + KILL_AFTER_S + leave_s,
    }
