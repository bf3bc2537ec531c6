"""A server with fake engines, a folder of pictures, and the command in this process or in one of its own."""

import dataclasses
import json
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import PIL.Image
from served import LLAVA, PALIGEMMA, listening

from serve.api.app import create_app
from serve.engines.fake import FakeEngine
from serve.models import MODELS
from serve.router import Router
from serve.worker import Worker

ROOT = Path(__file__).parents[3]


def serving(llava: FakeEngine | None = None, paligemma: FakeEngine | None = None) -> AbstractContextManager[str]:
    """The URL of the two toys with fake engines, while they run."""
    workers = [
        Worker(MODELS[LLAVA], llava or FakeEngine("red")),
        Worker(MODELS[PALIGEMMA], paligemma or FakeEngine("red")),
    ]
    for worker in workers:
        worker.mark("ready", "ready")
    return listening(create_app(Router(workers)))


def album(folder: Path, count: int) -> list[str]:
    """So many pictures, some in a subfolder, some called otherwise than they are: their relative paths, sorted."""
    names = [f"{'deep/' * (at % 3 == 0)}{at:03d}{('.png', '.jpg', '')[at % 3]}" for at in range(count)]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("RGB", (32, 24), "red").save(folder / name, ("PNG", "JPEG", "GIF", "WEBP")[len(name) % 4])
    return sorted(names)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@dataclasses.dataclass(frozen=True)
class Ran:
    status: int
    out: str
    err: str


HEEDING_SIGINT = (
    "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "runpy.run_module('serve', run_name='__main__')"
)
"""A shell has its background jobs ignore SIGINT; their children inherit that, and Python leaves it so."""


def started(*words: object) -> subprocess.Popen[str]:
    """`diptych ...` as a process of its own, as a terminal starts it."""
    command = [sys.executable, "-c", HEEDING_SIGINT, *map(str, words)]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
