"""Starts Diptych on one machine: checks, Ray, the application, progress; then waits for a signal to stop."""

import argparse
import contextlib
import errno
import logging
import os
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from deployments.args import APPLICATION, KEYS, Listen
from deployments.config import HERE, Config, ConfigError, default_config, for_models, read_config, takes_gpus
from deployments.local.gpus import gpus
from deployments.local.machine import PrivateRay, RayEnded, check_ray, reap
from deployments.local.progress import Progress
from deployments.local.stopping import Stopper
from deployments.plan import brief, brief_readers, make_plan, read_needs, readers
from serve.api.keys import new_key, parse_entries
from serve.models import MODELS
from serve.models.base import Model

SCENES = HERE.parent / "serve" / "toy" / "scenes"
QUESTION = "how many shapes are there?"
RESTARTS = "DIPTYCH_STARTED_AGAIN"
MAX_RESTARTS, STEADY_S = 3, 300.0
"""Restarts in a row after Ray ended; one after STEADY_S seconds of service does not count."""


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM. Return 0 when stopped, 1 when it could not start, with a sentence on stderr."""
    parser = argparse.ArgumentParser("diptych serve", allow_abbrev=False)
    add_options(parser)
    options = parser.parse_args(argv)
    try:
        config, lines = _planned_config(options)
        check_keys(config)
        check_free(config.host, config.port)
    except ConfigError as refused:
        print(f"diptych: {refused}", file=sys.stderr)
        return 1
    print("".join(f"{line}\n" for line in lines), end="", flush=True)
    return _serve(config, options)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is served, and where it listens."""
    models = parser.add_mutually_exclusive_group()
    models.add_argument("--config", type=Path, help="a Serve config, as local.yaml (the default) and gpu.yaml")
    models.add_argument("--models", help="names from `diptych models`, separated by commas")
    parser.add_argument("--host", help="default: the config's, else 127.0.0.1")
    parser.add_argument("--port", type=int, help="default: the config's, else 8000")


def chosen_config(options: argparse.Namespace) -> Config:
    """Read the config that the options name. Raises ConfigError.

    Its gateways listen at its host and port: those of the options, else of `gateway.listen`, else of http_options.
    """
    if options.models is not None:
        names = [name.strip() for name in options.models.split(",") if name.strip()]
        config = for_models(names, gpus=_share(names))
    else:
        config = default_config() if options.config is None else read_config(options.config)
    written: Config | Listen = config if config.args.gateway.listen is None else config.args.gateway.listen
    config = config.model_copy(
        update={
            "host": written.host if options.host is None else options.host,
            "port": written.port if options.port is None else options.port,
        }
    )
    _check_port(config.port)
    config.args.gateway.listen = Listen(host=config.host, port=config.port)  # its own port, and not Serve's ingress
    return config


def _share(names: Sequence[str]) -> float:
    """Return the GPUs per model: one each where there are enough, else an equal share; 0 for toys."""
    names = [name for name in names if takes_gpus(name)]
    if all(name in MODELS and MODELS[name].card.toy for name in names):
        return 0
    return min(1.0, len(gpus()) / len(names))


def _planned_config(options: argparse.Namespace) -> tuple[Config, list[str]]:
    """Read the config and plan its memory. Return it, with a line for each engine.

    Models that were named by --models get the GPUs, or the parts of one, that the plan gives them. Raises ConfigError
    where something does not fit, and says what would.
    """
    config = chosen_config(options)
    entries, sizes = config.args.engines(), [gpu.total for gpu in gpus()]
    ours = options.models is not None and any(entry.num_gpus for entry in entries.values())
    needs, unread = read_needs(config.args, planned_by_us=ours)
    on_gpu = [need for need in needs if entries[need.name].num_gpus]
    on_cpu = [need for need in needs if not entries[need.name].num_gpus]
    beside = readers(config.args)
    lines = [*brief_readers(beside), *(f"  {name}: not planned. {why}" for name, why in unread.items())]
    for group, gpu_sizes in ((on_gpu, sizes), (on_cpu, [])):
        if not group or (group is on_gpu and not sizes):
            continue
        plan = make_plan(group, gpu_sizes, beside=sum(beside.values()))
        if plan.refused:
            whys = " ".join(f"{name} does not fit: {why}" for name, why in plan.refused.items())
            raise ConfigError(f"{whys}\n{_doctor(options)}")
        lines = [*brief(plan), *lines]
        if ours and group is on_gpu and not unread:
            for place in plan.places:
                entries[place.name].num_gpus = len(place.gpus) if place.share == 1 else place.share
    return config, ["Memory, by diptych plan:", *lines] if lines else []


def _doctor(options: argparse.Namespace) -> str:
    """Return the line that names the command which says what is missing."""
    given = {"config": options.config, "models": options.models, "port": options.port}
    flags = [f"--{name} {shlex.quote(str(value))}" for name, value in given.items() if value is not None]
    return " ".join(["What this machine lacks, and what mends it: diptych doctor", *flags])


def check_keys(config: Config) -> None:
    """Raise ConfigError where the keys cannot be used. The gateway reads them again, in its own process."""
    try:
        config.args.gateway.access()
    except (ValueError, OSError) as error:
        raise ConfigError(f"The API keys cannot be used: {error}") from None


def _own_key(config: Config) -> str | None:
    """Return a key to ask /ready with, where one is needed. The gateway inherits its entry from our environment."""
    if not config.args.gateway.asks_for_keys():
        return None
    name = f"start-{os.getpid()}"
    key, entry = new_key(name)
    entries = parse_entries(os.environ.get(KEYS, ""))
    others = [other for other in entries if other.partition(":")[0] != name]  # _restart keeps pid and environment
    os.environ[KEYS] = ",".join([*others, entry])
    return key


def _check_port(port: int) -> None:
    if not 1 <= port <= 65535:
        raise ConfigError(f"{port} is not a port: it must be between 1 and 65535.")


def check_free(host: str, port: int) -> None:
    """Raise ConfigError where the port cannot be opened."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((host, port))  # :: takes IPv4's port too, which socket.create_server would not try
            trial.listen()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"Port {port} on {host} is in use. Stop what listens there, or choose another: --port {port + 1}"
            ) from None
        raise ConfigError(f"Cannot listen on port {port} of {host}: {error.strerror}.") from None


def _serve(config: Config, options: argparse.Namespace) -> int:
    began = time.monotonic()
    models = config.args.models_by_name
    names = list(models)
    if (warning := config.args.gateway.warning()) is not None:
        print(f"\n{warning}\n", file=sys.stderr, flush=True)
    progress = Progress(names, key=_own_key(config))
    print(f"Starting {' and '.join(names)}. Ctrl-C stops everything.", flush=True)
    placements = [config.args.gateway, *config.args.engines().values()]
    num_cpus = sum(placement.num_cpus * placement.max_replicas for placement in placements)
    ray = PrivateRay(num_cpus, config.args.simulated_gpus())
    stopper = Stopper(ray.stop, _drain, config.args.gateway.drain_s)
    try:
        with stopper, ray as logs:
            stopper.take_signals()  # ray.init has set a handler of its own for SIGTERM
            progress.log("Ray is up; starting a process for the front and one for each model")
            url = _run(config)
            stopper.serving.set()
            states = progress.follow(url)
            _welcome(url, states, logs, [models[name] for name in names])
            if "failed" in states.values():
                print(_doctor(options), flush=True)
            while True:
                changing = stopper.reload.wait(1.0)
                reap()
                check_ray()
                if changing:
                    stopper.reload.clear()
                    config = _changed(options, config)
                    stopper.drain_s = config.args.gateway.drain_s
    except RayEnded as ended:
        return _restart(str(ended), time.monotonic() - began)
    except ConfigError as refused:
        print(f"diptych: {refused}", file=sys.stderr)
        return 1
    except (RuntimeError, ConnectionError, TimeoutError) as error:  # raised by Ray when it cannot start
        print(f"diptych: Ray could not start the models: {' '.join(str(error).split())[:1000]}", file=sys.stderr)
        print(_doctor(options), file=sys.stderr)
        return 1


def _restart(why: str, served_s: float) -> int:
    """Replace this process by a new one with the same command line: what Ray leaves in a process goes with it."""
    times = 1 + (int(os.environ.get(RESTARTS, "0")) if served_s < STEADY_S else 0)
    if times > MAX_RESTARTS:
        print(f"diptych: {why} That was {MAX_RESTARTS} times in a row; see what ends it.", file=sys.stderr)
        return 1
    _say(f"\n{why} Starting everything again.")
    os.environ[RESTARTS] = str(times)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _run(config: Config) -> str:
    import ray.serve

    from deployments.local import update

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    update.check_resources(config.args)
    ray.serve.start(proxy_location="Disabled", logging_config=config.logging)
    update.start_applications(config)
    return _url(config)


def _url(config: Config) -> str:
    """Return the URL at which this machine reaches the gateways."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.host, config.host)
    return f"http://[{host}]:{config.port}" if ":" in host else f"http://{host}:{config.port}"


def _changed(options: argparse.Namespace, old: Config) -> Config:
    """Read the config again and apply it. Return the config that is served: the old one where the new is refused."""
    from deployments.local.update import update

    _say("Reading the config again.")
    began = time.monotonic()
    try:
        new, _ = _planned_config(options)
        check_keys(new)
        update(old, new, lambda line: _say(f"  {line}"))
    except ConfigError as refused:
        _say(f"diptych: {refused}\nThe config from before serves on.", sys.stderr)
        return old
    _say(f"It serves by the new config, after {time.monotonic() - began:.1f} s.")
    return new


def _say(text: str, out: TextIO | None = None) -> None:
    """Print a line, where somebody still reads: what took the output, as tee, may have ended."""
    with contextlib.suppress(OSError):
        print(text, file=out, flush=True)


def _drain(seconds: float) -> None:
    """Let every gateway finish its requests, for at most `seconds`."""
    import ray.exceptions
    import ray.serve.exceptions

    _say(f"\nFinishing what was begun, for at most {seconds:g} s.")
    # The signal may have been sent to Ray as well.
    with contextlib.suppress(ray.exceptions.RayError, ray.serve.exceptions.RayServeException, OSError, RuntimeError):
        ray.serve.get_deployment_handle("gateway", APPLICATION).broadcast("drain").results(timeout_s=seconds)


def _welcome(url: str, states: dict[str, str], logs: Path, models: Sequence[Model]) -> None:
    answering = [name for name, state in states.items() if state in ("ready", "asleep")]
    if len(answering) < len(states):
        print(f"Logs: {logs}")
    if not answering:
        print("No model can answer. Ctrl-C stops.", flush=True)
        return
    print(f"\nDiptych is ready: {url}\n\nTry, in another terminal:\n  {_command(url, models)}")
    native = [model for model in models if model.engine == "vllm"]
    if native and all(model.card.toy for model in native):
        print(
            "\nThe toys know drawn shapes only. The published models, on a GPU:\n"
            "  diptych serve --models llava-1.5-7b,paligemma-3b-mix-448"
        )
    sys.stdout.flush()


def _command(url: str, models: Sequence[Model]) -> str:
    scenes = sorted(SCENES.glob("*.png"))
    image = os.path.relpath(scenes[0]) if scenes else "PICTURE.png"
    beside = Path(sys.executable).with_name("diptych")
    program = "diptych" if shutil.which("diptych") else os.path.relpath(beside)
    server = "" if url.endswith("127.0.0.1:8000") else f" --server {shlex.quote(url)}"
    request = f'"{QUESTION}"' if any("vqa" in model.skills for model in models) else "--task ocr"
    return f"{program} ask{server} {image} {request}"
