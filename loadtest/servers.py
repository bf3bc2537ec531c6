"""The servers that are compared: the same checkpoint and engine arguments, each started by its own command."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from deployments.applications import APP
from deployments.local.gpus import gpus
from loadtest.pictures import body, pictures
from loadtest.processes import Tree
from serve.engines.plugins import prefix_lm
from serve.engines.vllm.arguments import ENVIRONMENT, arguments
from serve.models import MODELS

MODEL = "toy-llava"
HERE = Path(__file__).parent
OTHERS = HERE.parent / "build" / "others"
START_S, SETTLE_S = 300.0, 30.0


class NotAnswering(Exception):
    """A server that did not start or stopped answering: why, and where its log is."""


@dataclass(frozen=True)
class ServerKind:
    """A kind of server and how it is started.

    command: makes its command line from a port, a folder for its files and the URL of the server it forwards to ("" for
    none). front: the role of its first process. forwards_to: the key of the kind that it stands before. environment:
    the folder of its own Python environment. checkout: the repository whose code it runs. variables: of its process.
    packages: folders with Python packages beside its environment's.
    """

    key: str
    name: str
    command: Callable[[int, Path, str], list[str]]
    front: str = "driver"
    model: str = MODEL
    forwards_to: str = ""
    environment: Path | None = None
    checkout: Path = HERE.parent
    variables: Mapping[str, str] = field(default_factory=dict)
    packages: Sequence[Path] = ()

    def missing(self) -> str | None:
        """Return why it cannot run on this machine; None where it can."""
        if self.environment is not None and not self.environment.is_dir():
            return "its environment is not there: make bench-others"
        return None if (self.checkout / "deployments").is_dir() else "--previous names no checkout"


@dataclass
class Server:
    """A running server. upstream: the server it forwards to, whose CPU and memory count as its own."""

    kind: ServerKind
    url: str
    tree: Tree
    log: Path
    upstream: "Server | None" = None

    def cpu(self) -> dict[str, float]:
        """Return the CPU seconds so far, by role of process."""
        return {**(self.upstream.cpu() if self.upstream else {}), **self.tree.cpu()}

    def cpu_since(self, before: Mapping[str, float]) -> dict[str, float]:
        """Return the CPU seconds by role since `cpu` returned `before`."""
        return {role: spent - before.get(role, 0.0) for role, spent in self.cpu().items()}

    def memory(self) -> dict[str, float]:
        """Return the memory now in MiB, by role."""
        return {**(self.upstream.memory() if self.upstream else {}), **self.tree.memory()}

    @property
    def chat(self) -> str:
        return f"{self.url}/v1/chat/completions"


def engine_arguments(
    name: str = MODEL, checkpoint: Path | None = None, engine: Mapping[str, Any] | None = None, share: float = 1.0
) -> dict[str, object]:
    """Return the arguments with which Diptych starts a model's engine on this machine; the other servers get the same.

    checkpoint: a folder in place of the catalogue's. engine: the deployment's arguments. share: the part of a GPU.
    """
    model = MODELS[name]
    gpu = next(iter(gpus()), None)
    chosen = arguments(
        checkpoint or Path(model.checkpoint.hub),
        model.family_args,
        engine or {},
        is_prefix_lm=model.prefix_lm,
        cpu=gpu is None,
        share=share,
        gpu_bytes=gpu.total if gpu else 0,
        capability=gpu.capability[0] if gpu else 0,
    )
    return {**chosen, "served_model_name": name}


def _vllm(port: int, folder: Path, upstream: str) -> list[str]:
    return _vllm_command(port, engine_arguments())


def vllm(
    key: str,
    model: str,
    checkpoint: Path | None = None,
    engine: Mapping[str, Any] | None = None,
    share: float = 1.0,
    *,
    verbatim: bool = True,
) -> ServerKind:
    """Return vLLM's own server of a model. verbatim: it takes the message's text as the whole prompt."""

    def command(port: int, folder: Path, upstream: str) -> list[str]:
        if not verbatim:
            return _vllm_command(port, engine_arguments(model, checkpoint, engine, share))
        (folder / "verbatim.jinja").write_text("{{ messages[0].content }}")
        template = ["--chat-template", str(folder / "verbatim.jinja"), "--chat-template-content-format", "string"]
        return [*_vllm_command(port, engine_arguments(model, checkpoint, engine, share)), *template]

    variables = prefix_lm.ENVIRONMENT if MODELS[model].prefix_lm else {}
    return ServerKind(key, "vLLM's own server", command, front="server", model=model, variables=variables)


def _vllm_command(port: int, engine: Mapping[str, object]) -> list[str]:
    flags = []
    for name, value in engine.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            flags.append(flag)
        elif value is False:
            flags.append(flag.replace("--", "--no-", 1))
        else:
            flags += [flag, value if isinstance(value, str) else json.dumps(value)]
    server = [sys.executable, str(HERE / "vllm_server.py"), "--host", "127.0.0.1", "--port", str(port)]
    return [*server, "--disable-uvicorn-access-log", *flags]


def _diptych(port: int, folder: Path, upstream: str) -> list[str]:
    return [sys.executable, "-m", "deployments", f"--models={MODEL}", f"--port={port}"]


def diptych(key: str, name: str, models: Sequence[Mapping[str, Any]], **args: Any) -> ServerKind:
    """Return a Diptych that serves these entries of a Serve config. args: the application's others, as `gateway`."""

    def command(port: int, folder: Path, upstream: str) -> list[str]:
        config = folder / "config.yaml"
        application = {"name": "diptych", "import_path": APP, "args": {"models": list(models), **args}}
        config.write_text(yaml.dump({"applications": [application]}))
        return [sys.executable, "-m", "deployments", f"--config={config}", f"--port={port}"]

    return ServerKind(key, name, command, model=models[0]["name"] if models else "")


def simulated(name: str, engine: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    """Return a config's entry for a model without weights. engine: the settings of its FakeEngine."""
    return {"name": name, "like": MODEL, "checkpoint": str(HERE), "simulate": dict(engine), **fields}


def _ray_llm(port: int, folder: Path, upstream: str) -> list[str]:
    engine = folder / "engine.json"
    engine.write_text(json.dumps(engine_arguments()))
    return [str(OTHERS / "rayllm/bin/python"), str(HERE / "ray_llm.py"), str(port), str(engine)]


def _litellm(port: int, folder: Path, upstream: str) -> list[str]:
    entry = {"model": f"hosted_vllm/{MODEL}", "api_base": f"{upstream}/v1", "api_key": "none"}
    config = folder / "litellm.json"  # JSON is YAML
    no_key = {"dangerously_permit_weak_or_unset_master_key": True}  # or it does not start, even on loopback
    models = [{"model_name": MODEL, "litellm_params": entry}]
    config.write_text(json.dumps({"model_list": models, "general_settings": no_key}))
    program = str(OTHERS / "litellm/bin/litellm")
    return [program, "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"]


THROUGHPUT = dict.fromkeys(
    ("RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_THROUGHPUT_OPTIMIZED", "RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING"), "1"
)
"""The settings of KubeRay's sample for ray.serve.llm at high throughput."""

KINDS = {
    kind.key: kind
    for kind in (
        ServerKind("A", "vLLM's own server", _vllm, front="server"),
        ServerKind("B", "Diptych", _diptych),
        ServerKind("P", "Diptych of another checkout", _diptych, checkout=Path("no-checkout")),
        ServerKind("C", "ray.serve.llm", _ray_llm, environment=OTHERS / "rayllm"),
        ServerKind("E", "ray.serve.llm, tuned", _ray_llm, environment=OTHERS / "rayllm", variables=THROUGHPUT),
        ServerKind("D", "LiteLLM before A", _litellm, "litellm", forwards_to="A", environment=OTHERS / "litellm"),
    )
}


@contextlib.contextmanager
def running(kind: ServerKind, upstream: Server | None = None) -> Iterator[Server]:
    """Run a server until the block ends. Raises NotAnswering when it answers no question within START_S.

    From now on SIGTERM ends this process as Ctrl-C does, so that its servers end with it.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
    folder = Path(tempfile.mkdtemp(prefix=f"bench-{kind.key.lower()}-"))
    log = folder / "log.txt"
    with log.open("wb") as out:
        process = subprocess.Popen(
            kind.command(port, folder, upstream.url if upstream else ""),
            stdout=out,
            stderr=subprocess.STDOUT,
            # One thread for torch, as Ray gives its replicas: with two, vLLM's own server is a fifth slower here.
            env={
                **ENVIRONMENT,
                "OMP_NUM_THREADS": "1",
                **os.environ,
                **kind.variables,
                "PYTHONPATH": os.pathsep.join(map(str, (kind.checkout, *kind.packages))),
            },
            cwd=kind.checkout,  # `-m deployments` is looked for here first
            start_new_session=True,
        )
    server = Server(kind, f"http://127.0.0.1:{port}", Tree(process.pid, kind.front), log, upstream)
    try:
        _wait(server, process)
        yield server
    finally:
        _stop(server, process)
    shutil.rmtree(folder, ignore_errors=True)


def failure(server: Server) -> str | None:
    """Ask the server about a picture. Return what went wrong; None where it was answered."""
    question = body(server.kind.model, next(pictures("1x", 0)), tokens=2, stream=False)
    request = urllib.request.Request(server.chat, question, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return None if reply.status == 200 else str(reply.status)
    except urllib.error.HTTPError as error:
        return f"{error.code} {error.read()[:300].decode(errors='replace')}"
    except OSError as error:
        return str(error)


@contextlib.contextmanager
def only(chosen: Sequence[Server], servers: Sequence[Server]) -> Iterator[None]:
    """Stop the other servers where they stand (SIGSTOP) until the block ends, so that idling costs no CPU.

    Raises NotAnswering where one of the chosen, which was stopped itself, does not recover within SETTLE_S.
    """
    used = [*chosen, *(server.upstream for server in chosen)]
    others = [other for other in servers if other not in used]
    for other in others:
        other.tree.hold(True)
    for server in chosen:
        until = time.monotonic() + SETTLE_S
        good = 0
        while good < 8:  # its parts have to find each other again
            good = good + 1 if failure(server) is None else 0
            if time.monotonic() > until:
                raise NotAnswering(f"{server.kind.name} answers no more; its log: {server.log}")
            if not good:
                time.sleep(0.2)
    try:
        yield
    finally:
        for other in others:
            other.tree.hold(False)


def fetch(url: str) -> str:
    """Return the text at this URL. Raises OSError."""
    with urllib.request.urlopen(url, timeout=60) as reply:
        return str(reply.read().decode())


def metrics(url: str) -> dict[str, float]:
    """Fetch a Diptych's /metrics. Return each of its metrics, summed over its labels. Raises OSError."""
    totals: Counter[str] = Counter()
    for name, value in re.findall(r"^(diptych_\w+)(?:\{.*\})? (\S+)$", fetch(f"{url}/metrics"), re.MULTILINE):
        totals[name] += float(value)  # type: ignore[assignment]
    return dict(totals)


def _wait(server: Server, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_S
    why: str | None = "nothing"
    while time.monotonic() < until and process.poll() is None:
        why = failure(server)
        if why is None:
            return
        time.sleep(0.5)
    tail = server.log.read_text(errors="replace")[-1500:]
    raise NotAnswering(f"{server.kind.name} did not start ({why}). Its log, {server.log}, ends:\n{tail}")


def _stop(server: Server, process: subprocess.Popen[bytes]) -> None:
    everything = server.tree.all()
    server.tree.hold(False)
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
    for left in everything[1:]:
        with contextlib.suppress(OSError):
            os.kill(left, signal.SIGKILL)
