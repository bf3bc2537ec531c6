"""The latency that a fan-out adds to its slowest model: simulated engines behind the real router, gateway and Ray.

`make bench-fan-out`. For each number of models: the load at which it saturates, then at half of that the latency beyond
the engines' own, CPU of a request by process, and memory. loadtest/NOTES.md has the results.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import uvloop

from loadtest.arguments import several, whole
from loadtest.client import Client, Result
from loadtest.ledger import percentile
from loadtest.pictures import data_url, pictures
from loadtest.servers import Server, diptych, running, simulated
from serve.engines.base import Prompt
from serve.engines.fake import FakeEngine

WORDS = "one two three four"
SPEED = {"replies": WORDS, "first_delay_s": 0.1, "delay_s": 0.05}  # 0.3 s a reply; few naps, each is late by up to 1 ms
STEP_S = 6.0
HEAD = "models  answered of sent/s  added p50 ms  p99 ms  failed  CPU ms a request  gateway  replicas    MB"
SATURATED = 0.9
"""The share of the requests' rate below which the rate of answers means that a load is too high."""


@dataclass(frozen=True)
class Point:
    """A load on a fan-out to a number of models. Milliseconds; added: beyond what the engine alone takes."""

    models: int
    stream: bool
    offered: float
    answered: float
    added_p50: float
    added_p99: float
    cpu: dict[str, float]
    memory_mb: dict[str, float]
    failed: int


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", type=several(whole(1)), default="1,2,4,8,16")
    parser.add_argument("--stream", action="store_true", help="streamed replies")


def run(options: argparse.Namespace) -> tuple[str, Any, bool]:
    """Met: at half load the median adds at most 5 ms, the slowest hundredth 20, and nothing fails."""
    widths = options.models
    names = _names(max(widths))
    kind = diptych("F", f"Diptych with {len(names)} simulated models", [simulated(name, SPEED) for name in names])
    with running(kind) as server:
        halves = uvloop.run(_measure(server, widths, options.stream))
    print("\n".join(["\nAt half load:", HEAD, *map(_row, halves)]))
    met = all(point.added_p50 <= 5 and point.added_p99 <= 20 and not point.failed for point in halves)
    print("added p50 <= 5 ms and p99 <= 20 ms at half load: " + ("met" if met else "MISSED"))
    name = "fan_out_streamed" if options.stream else "fan_out"
    return name, [asdict(point) for point in halves], met


def _names(width: int) -> list[str]:
    return [f"simulated-{at:02}" for at in range(1, width + 1)]


async def _measure(server: Server, widths: Sequence[int], stream: bool) -> list[Point]:
    halves = []
    print(HEAD)
    for width in widths:
        rate = best = 16.0
        while True:
            point = await _load(server, width, stream, rate)
            print(_row(point), flush=True)
            if point.failed or point.answered < SATURATED * point.offered:
                break
            best, rate = rate, rate * 1.6
        halves.append(await _load(server, width, stream, best / 2, seconds=4 * STEP_S))
    return halves


async def _load(server: Server, width: int, stream: bool, rate: float, seconds: float = STEP_S) -> Point:
    """Send `rate` requests a second in an open loop."""

    def read(data: bytes, _result: Result) -> None:
        if (good := data.count(b'"status":"ok"')) != width:
            raise ValueError(f"{good} of {width} models answered well")

    count = max(10, int(rate * seconds))
    bodies = list(_bodies(width, stream, count))
    alone = await _engine_alone()
    client = Client(f"{server.url}/v1/tasks/vqa", read)
    await client.closed(bodies[:1], 1, stream=False)
    before = server.cpu()
    seconds, results = await client.open(bodies, rate, stream=False, seed=count)
    spent = server.cpu_since(before)
    added = [1000 * (result.seconds - alone) for result in results if not result.error]
    return Point(
        models=width,
        stream=stream,
        offered=count / results[-1].due,
        answered=len(added) / seconds,
        added_p50=percentile(added, 0.5),
        added_p99=percentile(added, 0.99),
        cpu={role: 1000 * used / count for role, used in spent.items()},
        memory_mb=server.memory(),
        failed=count - len(added),
    )


def _bodies(width: int, stream: bool, count: int) -> Iterator[bytes]:
    for picture in islice(pictures("1x", count), count):
        question = {"image": data_url(picture), "question": "what is it?", "models": _names(width), "stream": stream}
        yield json.dumps(question).encode()


async def _engine_alone(times: int = 5) -> float:
    """Measure the median seconds of a reply of the simulated engine alone, on this machine now."""
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        async for _piece in FakeEngine(**SPEED).generate(Prompt("", None)):  # type: ignore[arg-type]
            pass
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _row(point: Point) -> str:
    cpu = point.cpu
    return (
        f"{point.models:>6}  {point.answered:>9.1f} of {point.offered:>5.1f}  {point.added_p50:>12.1f}  "
        f"{point.added_p99:>6.1f}  {point.failed:>6}  {sum(cpu.values()):>16.1f}  {cpu.get('gateway', 0):>7.1f}  "
        f"{cpu.get('replica', 0):>8.1f}  {sum(point.memory_mb.values()):>4.0f}"
    )
