"""The servers that are compared: the same checkpoint, the same engine arguments, each started as its makers say."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deployments.config import APP
from loadtest.pictures import body, pictures
from loadtest.processes import Tree
from serve.engines.vllm.arguments import ENVIRONMENT, arguments
from serve.models import MODELS

MODEL = "toy-llava"
HERE = Path(__file__).parent
OTHERS = HERE.parent / "build" / "others"
PREVIOUS = "DIPTYCH_BENCH_PREVIOUS"
"""The environment variable that names another checkout of this repository, for side P."""
START_S = 300.0


class Refused(Exception):
    """A server that did not start: why, and where its log is."""


@dataclass
class Side:
    """One server, running. key: its letter; url: where it takes chat completions."""

    key: str
    name: str
    url: str
    tree: Tree
    log: Path
    model: str = MODEL
    upstream: "Side | None" = None

    def cpu(self) -> dict[str, float]:
        """CPU seconds so far, by role; of the server that it stands before as well."""
        mine = self.tree.cpu()
        return {**self.upstream.cpu(), **mine} if self.upstream is not None else mine

    def cpu_since(self, before: Mapping[str, float]) -> dict[str, float]:
        """CPU seconds by role since `cpu` gave `before`."""
        return {role: spent - before.get(role, 0.0) for role, spent in self.cpu().items()}

    def memory(self) -> dict[str, float]:
        """MiB now, in the same way."""
        mine = self.tree.memory()
        return {**self.upstream.memory(), **mine} if self.upstream is not None else mine

    @property
    def chat(self) -> str:
        return f"{self.url}/v1/chat/completions"


@dataclass(frozen=True)
class Sort:
    """How a server is started. command: from its port and a folder for its files. front: its own process's role.
    checkout: the repository whose code it runs."""

    key: str
    name: str
    front: str
    command: Callable[[int, Path], list[str]]
    before: str | None = None  # the side that it stands before
    missing: Callable[[], str | None] = lambda: None
    model: str = MODEL
    checkout: Callable[[], Path] = lambda: HERE.parent


def engine_arguments() -> dict[str, object]:
    """What Diptych starts the toy's engine with, which the other sides get as well."""
    model = MODELS[MODEL]
    chosen = arguments(Path(model.checkpoint.hub), model.family_args, {}, is_prefix_lm=False, cpu=True)
    return {**chosen, "served_model_name": MODEL}


def _vllm(port: int, folder: Path) -> list[str]:
    flags = []
    for name, value in engine_arguments().items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            flags.append(flag)
        elif value is False:
            flags.append(flag.replace("--", "--no-", 1))
        else:
            flags += [flag, value if isinstance(value, str) else json.dumps(value)]
    server = [sys.executable, str(HERE / "vllm_server.py"), "--host", "127.0.0.1", "--port", str(port)]
    return [*server, "--disable-uvicorn-access-log", *flags]


def _diptych(port: int, folder: Path) -> list[str]:
    return [sys.executable, "-m", "deployments", f"--models={MODEL}", f"--port={port}"]


def diptych_with(models: Sequence[Mapping[str, Any]], port: int, folder: Path, **args: Any) -> list[str]:
    """The command that serves these entries of a Serve config. args: the config's others, as `gateway`."""
    config = folder / "config.yaml"
    application = {"name": "diptych", "import_path": APP, "args": {"models": list(models), **args}}
    config.write_text(yaml.dump({"applications": [application]}))
    return [sys.executable, "-m", "deployments", f"--config={config}", f"--port={port}"]


def _ray_llm(port: int, folder: Path) -> list[str]:
    given = folder / "engine.json"
    given.write_text(json.dumps(engine_arguments()))
    return [_interpreter("rayllm"), str(HERE / "ray_llm.py"), str(port), str(given)]


def _litellm(port: int, folder: Path) -> list[str]:
    upstream = os.environ["DIPTYCH_BENCH_UPSTREAM"]
    entry = {"model": f"hosted_vllm/{MODEL}", "api_base": f"{upstream}/v1", "api_key": "none"}
    config = folder / "litellm.json"  # JSON is YAML
    alone = {"dangerously_permit_weak_or_unset_master_key": True}  # it starts with no key on loopback only when told so
    models = [{"model_name": MODEL, "litellm_params": entry}]
    config.write_text(json.dumps({"model_list": models, "general_settings": alone}))
    program = str(Path(_interpreter("litellm")).with_name("litellm"))
    return [program, "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"]


def _interpreter(name: str) -> str:
    """The Python of an environment of its own; where another is wanted, LITELLM_PYTHON and RAYLLM_PYTHON name it."""
    return os.environ.get(f"{name.upper()}_PYTHON") or str(OTHERS / name / "bin" / "python")


def _needs(name: str) -> Callable[[], str | None]:
    """Why a side cannot run here: its environment is not there."""

    def missing() -> str | None:
        return None if shutil.which(_interpreter(name)) else "its environment is not there: make bench-others"

    return missing


def _previous() -> Path:
    """Return the other checkout; an empty path where none was named."""
    return Path(os.environ.get(PREVIOUS, ""))


def _no_previous() -> str | None:
    """Return why side P cannot run."""
    return None if (_previous() / "deployments").is_dir() and PREVIOUS in os.environ else "--previous names no checkout"


SORTS = {
    sort.key: sort
    for sort in (
        Sort("A", "vLLM's own server", "server", _vllm),
        Sort("B", "Diptych", "driver", _diptych),
        Sort("P", "Diptych of another checkout", "driver", _diptych, missing=_no_previous, checkout=_previous),
        Sort("C", "ray.serve.llm", "driver", _ray_llm, missing=_needs("rayllm")),
        Sort("D", "LiteLLM before A", "litellm", _litellm, before="A", missing=_needs("litellm")),
    )
}


@contextlib.contextmanager
def running(sort: Sort, upstream: Side | None = None) -> Iterator[Side]:
    """A server until the block ends. Raises Refused when it does not answer a question within START_S.

    From now on SIGTERM ends this process as Ctrl-C does, so that it takes its servers along.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    port = _free_port()
    folder = Path(tempfile.mkdtemp(prefix=f"bench-{sort.key.lower()}-"))
    log = folder / "log.txt"
    if upstream is not None:
        os.environ["DIPTYCH_BENCH_UPSTREAM"] = upstream.url
    # One thread for torch, which Ray gives its replicas too: with two, vLLM's own server is a fifth slower here.
    checkout = str(sort.checkout().absolute())
    environment = {**ENVIRONMENT, "OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": checkout}
    with log.open("wb") as out:
        process = subprocess.Popen(
            sort.command(port, folder),
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=checkout,  # `-m deployments` is looked for here first
            start_new_session=True,
        )
    side = Side(
        sort.key, sort.name, f"http://127.0.0.1:{port}", Tree(process.pid, sort.front), log, sort.model, upstream
    )
    try:
        _wait(side, process)
        yield side
    finally:
        _stop(side, process)
    shutil.rmtree(folder, ignore_errors=True)


def answers(side: Side, timeout_s: float = 10.0) -> str | None:
    """None once it has answered a question about a picture; what went wrong else."""
    asked = body(side.model, next(pictures("1x", 0)), tokens=2, stream=False)
    request = urllib.request.Request(side.chat, asked, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as reply:
            return None if reply.status == 200 else str(reply.status)
    except urllib.error.HTTPError as error:
        return f"{error.code} {error.read()[:300].decode(errors='replace')}"
    except OSError as error:
        return str(error)


def _wait(side: Side, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_S
    said: str | None = "nothing"
    while time.monotonic() < until and process.poll() is None:
        said = answers(side)
        if said is None:
            return
        time.sleep(0.5)
    tail = side.log.read_text(errors="replace")[-1500:]
    raise Refused(f"{side.name} did not start ({said}). Its log, {side.log}, ends:\n{tail}")


def _stop(side: Side, process: subprocess.Popen[bytes]) -> None:
    everything = side.tree.all()
    side.tree.hold(False)
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
    for left in everything[1:]:
        with contextlib.suppress(OSError):
            os.kill(left, signal.SIGKILL)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])
