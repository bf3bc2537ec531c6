"""Changes a running server to a new config: no request is lost, and a config that cannot be used changes nothing."""

import re
from collections.abc import Callable

from deployments.args import Args
from deployments.config import Config, Refused

REASON = re.compile(r"ModelError: (.*)")


def update(old: Config, new: Config, report: Callable[[str], None]) -> None:
    """Change the server from `old` to `new`. Blocks while models load.

    New and changed models are started beside the old ones; then the gateways change over; only then the models that are
    left over are stopped. Where there is no room for both at once, those are stopped first, and report that they are.

    report: called with lines for the terminal. Raises Refused where the new config cannot be used; the old one then
    serves on.
    """
    from deployments.app import application, changed

    if (old.host, old.port, old.args.gateway.listen) != (new.host, new.port, new.args.gateway.listen):
        raise Refused("The port cannot change while it serves.")
    started = changed(old.args, new.args)
    removed = [name for name in old.args.engines() if name not in new.args.engines()]
    if _fits(old.args, new.args, started):
        if started:
            report(f"starting {', '.join(started)}")
            try:
                run(application(old.args, [old.args, new.args], started), new)
            except RuntimeError:
                reasons = _reasons()
                run(application(old.args, [old.args]), old)
                raise Refused(reasons) from None
        run(application(new.args, [old.args, new.args]), new)
    elif started:
        affected = ", ".join(removed + started)
        report(f"there is no room for old and new at once: {affected} answer again when they are loaded")
    run(application(new.args, [new.args]), new)


def run(application: object, config: Config) -> None:
    """Deploy an application and wait until all of it runs. Raises RuntimeError where a part of it cannot."""
    import ray.serve

    ray.serve.run(application, name="diptych", route_prefix="/", logging_config=config.logging)


def _fits(old: Args, new: Args, started: list[str]) -> bool:
    """Return whether old and new engines fit on the GPUs at once. Raises Refused where the new ones alone do not."""
    import ray

    have = ray.cluster_resources().get("GPU", 0)
    needed = {name: entry.num_gpus * entry.max_replicas for name, entry in new.engines().items()}
    if sum(needed.values()) > have:
        raise Refused(f"The config asks for {sum(needed.values()):g} GPUs and this machine has {have:g}.")
    left = sum(entry.num_gpus * entry.max_replicas for name, entry in old.engines().items() if name not in needed)
    twice = sum(needed[name] for name in started if name in old.engines() and new.engines()[name].surges)
    return bool(sum(needed.values()) + left + twice <= have)


def _reasons() -> str:
    """Return why deployments did not come up: Serve's message, or the error of a model that could not be loaded."""
    import ray.serve

    deployments = ray.serve.status().applications["diptych"].deployments
    messages = {name: info.message for name, info in deployments.items() if info.status != "HEALTHY" and info.message}
    reasons = {name: REASON.findall(text)[-1:] or [" ".join(text.split())] for name, text in messages.items()}
    return " ".join(f"{name}: {reason[0][:500]}" for name, reason in reasons.items())
