"""Applies a new config to a running server. No request is lost; an unusable config changes nothing."""

import contextlib
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import Any

from deployments.args import APPLICATION, Args
from deployments.config import Config, ConfigError

REASON = re.compile(r"ModelError: (.*)")
ANSWER_S = 30.0
"""Seconds for the gateways to say whether they took a config over."""


def start_applications(config: Config) -> None:
    """Start the applications of a config. Returns once its gateways run; its models may be loading, or fail.

    Raises RuntimeError where a gateway cannot start.
    """
    from deployments.app import gateway_application, model_applications

    _deploy(model_applications(config.args), config, wait=False)
    _deploy({APPLICATION: gateway_application(config.args)}, config)


def update(old: Config, new: Config, report: Callable[[str], None]) -> None:
    """Change the server from `old` to `new`. Blocks while models load.

    New and changed models are started beside the old ones, then the gateways switch to them, then old models stop.
    Where there is no room for both at once, old models stop first, and `report` says so. Applications in which nothing
    changes are left alone.

    report: called with lines for the terminal. Raises ConfigError where the new config cannot be used; the old one then
    stays.
    """
    from deployments.app import changed, gateway_application, model_applications

    if (old.host, old.port, old.args.gateway.listen) != (new.host, new.port, new.args.gateway.listen):
        raise ConfigError("The port cannot change while it serves.")
    started = changed(old.args, new.args)
    affected = {new.args.application(name) for name in started}
    try:
        before, after = model_applications(old.args), model_applications(new.args)
        gateways, gateways_before = gateway_application(new.args), gateway_application(old.args)
    except ValueError as error:
        raise ConfigError(f"Ray refuses it: {' '.join(str(error).split())[:500]}") from None
    room = _fits(old.args, new.args, started)
    if started and room:
        report(f"starting {', '.join(started)}")
        try:
            _deploy(_some(model_applications(old.args, new.args, refuse=started), affected), new)
        except RuntimeError as error:
            reasons = _reasons(affected) or str(error)
            _delete(affected - before.keys())
            _deploy(_some(before, affected), old, wait=False)
            raise ConfigError(reasons) from None
    elif started:
        removed = [name for name in old.args.engines() if name not in new.args.engines()]
        names = ", ".join(removed + started)
        report(f"there is no room for old and new at once: {names} answer again when they are loaded")
        _delete(before.keys() - after.keys())
    try:
        _deploy({APPLICATION: gateways}, new)
        refusal = _refusal()
    except RuntimeError as error:
        refusal = _reasons({APPLICATION}) or str(error)
    if refusal is not None:
        _deploy({APPLICATION: gateways_before}, old, wait=False)
        _delete(after.keys() - before.keys())
        _deploy(before, old, wait=False)
        raise ConfigError(refusal)
    _delete(before.keys() - after.keys())
    _deploy(after, new, wait=False)


def check_resources(args: Args) -> dict[str, float]:
    """Return this machine's resources as Ray counts them. Raises ConfigError where a config reserves more than these.

    Ray would wait for them without end.
    """
    import ray

    have: dict[str, float] = ray.cluster_resources()
    needed = defaultdict(float, {"GPU": sum(args.needed_gpus().values())})
    for placement in (args.gateway, *args.engines().values()):
        needed["CPU"] += placement.num_cpus * placement.max_replicas
        for resource, amount in placement.resources.items():
            needed[resource] += amount * placement.max_replicas
    for resource, amount in needed.items():
        there = have.get(resource, 0)
        if amount > there:
            unit = f"{resource}s" if resource in ("CPU", "GPU") else resource
            anew = " for what it was started with: start it anew" if resource == "CPU" else ""
            raise ConfigError(f"The config asks for {amount:g} {unit} and this machine has {there:g}{anew}.")
    return have


def _some(applications: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {name: application for name, application in applications.items() if name in names}


def _deploy(applications: Mapping[str, Any], config: Config, *, wait: bool = True) -> None:
    """Deploy applications, by name. wait: until each runs; RuntimeError is raised where one cannot."""
    import ray.serve

    if applications:
        ray.serve.run_many(
            [
                ray.serve.RunTarget(
                    application,
                    name=name,
                    route_prefix="/" if name == APPLICATION else None,
                    logging_config=config.logging,
                )
                for name, application in applications.items()
            ],
            wait_for_ingress_deployment_creation=wait,
            wait_for_applications_running=wait,
        )


def _delete(applications: Collection[str]) -> None:
    """Delete applications. Their replicas end once they have finished, within drain_s."""
    import ray.serve

    for name in applications:
        ray.serve.delete(name, _blocking=False)


def _fits(old: Args, new: Args, started: list[str]) -> bool:
    """Return whether old and new engines fit on the GPUs together. Raises ConfigError where the new ones do not."""
    have = check_resources(new)
    gpus = new.needed_gpus()
    left = sum(amount for name, amount in old.needed_gpus().items() if name not in gpus)
    twice = sum(gpus[name] for name in started if name in old.engines() and new.engines()[name].surges)
    return bool(sum(gpus.values()) + left + twice <= have.get("GPU", 0))


def _refusal() -> str | None:
    """Return why a gateway keeps the config from before; None where none does, or none can say."""
    import ray.exceptions
    import ray.serve.exceptions

    unreachable = (ray.exceptions.RayError, ray.serve.exceptions.RayServeException, TimeoutError)
    with contextlib.suppress(*unreachable):
        handle = ray.serve.get_deployment_handle("gateway", APPLICATION)
        return next(filter(None, handle.broadcast("refusal").results(timeout_s=ANSWER_S)), None)
    return None


def _reasons(applications: Collection[str]) -> str:
    """Return why deployments did not start: Serve's message, or the error of a model that could not be loaded."""
    import ray.serve

    running = ray.serve.status().applications
    deployments = [item for name in applications if name in running for item in running[name].deployments.items()]
    messages = {name: info.message for name, info in deployments if info.status != "HEALTHY" and info.message}
    reasons = {name: REASON.findall(text)[-1:] or [" ".join(text.split())] for name, text in messages.items()}
    return " ".join(f"{name}: {reason[0][:500]}" for name, reason in reasons.items())
