"""Applies a new config to a running server. No request is lost; an unusable config changes nothing."""

import re
from collections.abc import Callable

from deployments.args import Args
from deployments.config import Config, ConfigError

REASON = re.compile(r"ModelError: (.*)")


def update(old: Config, new: Config, report: Callable[[str], None]) -> None:
    """Change the server from `old` to `new`. Blocks while models load.

    New and changed models are started beside the old ones, then the gateways switch to them, then old models stop.
    Where there is no room for both at once, old models stop first, and `report` says so.

    report: called with lines for the terminal. Raises ConfigError where the new config cannot be used; the old one then
    stays.
    """
    from deployments.app import application, changed

    if (old.host, old.port, old.args.gateway.listen) != (new.host, new.port, new.args.gateway.listen):
        raise ConfigError("The port cannot change while it serves.")
    started = changed(old.args, new.args)
    removed = [name for name in old.args.engines() if name not in new.args.engines()]
    if _fits(old.args, new.args, started):
        if started:
            report(f"starting {', '.join(started)}")
            try:
                deploy(application(old.args, [old.args, new.args], started), new)
            except RuntimeError:
                reasons = _reasons()
                deploy(application(old.args, [old.args]), old)
                raise ConfigError(reasons) from None
        deploy(application(new.args, [old.args, new.args]), new)
    elif started:
        affected = ", ".join(removed + started)
        report(f"there is no room for old and new at once: {affected} answer again when they are loaded")
    deploy(application(new.args, [new.args]), new)


def deploy(application: object, config: Config) -> None:
    """Deploy an application and wait until all of it runs. Raises RuntimeError where a part of it cannot."""
    import ray.serve

    ray.serve.run(application, name="diptych", route_prefix="/", logging_config=config.logging)


def _fits(old: Args, new: Args, started: list[str]) -> bool:
    """Return whether old and new engines fit on the GPUs together. Raises ConfigError where the new ones do not."""
    import ray

    have = ray.cluster_resources().get("GPU", 0)
    needed = new.needed_gpus()
    if sum(needed.values()) > have:
        raise ConfigError(f"The config asks for {sum(needed.values()):g} GPUs and this machine has {have:g}.")
    left = sum(gpus for name, gpus in old.needed_gpus().items() if name not in needed)
    twice = sum(needed[name] for name in started if name in old.engines() and new.engines()[name].surges)
    return bool(sum(needed.values()) + left + twice <= have)


def _reasons() -> str:
    """Return why deployments did not start: Serve's message, or the error of a model that could not be loaded."""
    import ray.serve

    deployments = ray.serve.status().applications["diptych"].deployments
    messages = {name: info.message for name, info in deployments.items() if info.status != "HEALTHY" and info.message}
    reasons = {name: REASON.findall(text)[-1:] or [" ".join(text.split())] for name, text in messages.items()}
    return " ".join(f"{name}: {reason[0][:500]}" for name, reason in reasons.items())
