"""From one config to the next while it serves: nothing asked is lost, and one that cannot be used changes nothing."""

import re
from collections.abc import Callable

from deployments.args import Args
from deployments.config import Config, Refused

REASON = re.compile(r"ModelError: (.*)")


def update(old: Config, new: Config, say: Callable[[str], None]) -> None:
    """Make what serves by `old` serve by `new`. Blocks as long as models load.

    First what is new or otherwise is started beside what there is; then the gateways change over, and only then what is
    left over ends. Where there is no room for both at once, what goes makes room first, and its column says so.

    Raises Refused where the new one cannot be used; the old one then serves on.
    """
    from deployments.app import application, changed

    if (old.host, old.port, old.args.gateway.listen) != (new.host, new.port, new.args.gateway.listen):
        raise Refused("The port cannot change while it serves.")
    coming = changed(old.args, new.args)
    going = [name for name in old.args.engines() if name not in new.args.engines()]
    if _room(old.args, new.args, coming):
        if coming:
            say(f"starting {', '.join(coming)}")
            try:
                run(application(old.args, [old.args, new.args], coming), new)
            except RuntimeError:
                why = _why()
                run(application(old.args, [old.args]), old)
                raise Refused(why) from None
        run(application(new.args, [old.args, new.args]), new)
    elif coming:
        say(f"there is no room for old and new at once: {', '.join(going + coming)} answer again when they are loaded")
    run(application(new.args, [new.args]), new)


def run(application: object, config: Config) -> None:
    """Have Serve run it, until all of it runs. Raises RuntimeError where a part of it cannot."""
    import ray.serve

    ray.serve.run(application, name="diptych", route_prefix="/", logging_config=config.logging)


def _room(old: Args, new: Args, coming: list[str]) -> bool:
    """Whether old and new engines fit on the GPUs at once. Raises Refused where not even the new ones do."""
    import ray

    have = ray.cluster_resources().get("GPU", 0)
    wanted = {name: entry.num_gpus * entry.max_replicas for name, entry in new.engines().items()}
    if sum(wanted.values()) > have:
        raise Refused(f"The config asks for {sum(wanted.values()):g} GPUs and this machine has {have:g}.")
    left = sum(entry.num_gpus * entry.max_replicas for name, entry in old.engines().items() if name not in wanted)
    twice = sum(wanted[name] for name in coming if name in old.engines() and new.engines()[name].surges)
    return bool(sum(wanted.values()) + left + twice <= have)


def _why() -> str:
    """What Serve says of the deployments that did not come up; of a model that could not be loaded its own words."""
    import ray.serve

    deployments = ray.serve.status().applications["diptych"].deployments
    said = {name: one.message for name, one in deployments.items() if one.status != "HEALTHY" and one.message}
    reasons = {name: REASON.findall(message)[-1:] or [" ".join(message.split())] for name, message in said.items()}
    return " ".join(f"{name}: {reason[0][:500]}" for name, reason in reasons.items())
