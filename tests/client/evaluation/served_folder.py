"""A server with fake engines, a folder of images, and the command as a process."""

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
    """Serve the two toys with fake engines; the context manager gives the URL."""
    workers = [
        Worker(MODELS[LLAVA], llava or FakeEngine("red")),
        Worker(MODELS[PALIGEMMA], paligemma or FakeEngine("red")),
    ]
    for worker in workers:
        worker.mark("ready", "ready")
    return listening(create_app(Router(workers)))


def album(folder: Path, count: int) -> list[str]:
    """Write `count` images, some in a subfolder, some with a wrong suffix, and return their relative paths, sorted."""
    names = [f"{'deep/' * (index % 3 == 0)}{index:03d}{('.png', '.jpg', '')[index % 3]}" for index in range(count)]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("RGB", (32, 24), "red").save(folder / name, ("PNG", "JPEG", "GIF", "WEBP")[len(name) % 4])
    return sorted(names)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


HEEDING_SIGINT = (
    "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "runpy.run_module('serve.cli', run_name='__main__')"
)
"""A shell lets its background jobs ignore SIGINT; their children inherit that, and Python does not change it."""


def started(*arguments: object) -> subprocess.Popen[str]:
    """Start `diptych ...` as a process that heeds SIGINT, as one in a terminal does."""
    command = [sys.executable, "-c", HEEDING_SIGINT, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
