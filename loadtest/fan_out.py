"""What a fan-out adds to its slowest model: simulated engines of one speed behind the real router, gateway and Ray.

`make bench-fan-out`. For each number of models: the load at which it saturates, then at half of that the latency beyond
the engines' own, CPU of a request by process, and memory. loadtest/NOTES.md says what was found.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import uvloop

from loadtest.caller import Caller, Seen
from loadtest.ledger import percentile
from loadtest.pictures import data_url, pictures
from loadtest.sides import Side, Sort, diptych_with, running
from serve.engines.base import Prompt
from serve.engines.fake import FakeEngine

WORDS = "one two three four"
SPEED = {"replies": WORDS, "first_delay_s": 0.1, "delay_s": 0.05}  # 0.3 s a reply; few naps, each is late by up to 1 ms
STEP_S = 6.0
SATURATED = 0.9
"""Below this share of what was asked in answers, a load is too high."""


@dataclass(frozen=True)
class Point:
    """One load on a fan-out of so many models. Milliseconds; added: beyond what the engine alone takes."""

    models: int
    stream: bool
    asked: float
    answered: float
    added_p50: float
    added_p99: float
    cpu: dict[str, float]
    memory_mb: dict[str, float]
    failed: int


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", default="1,2,4,8,16")
    parser.add_argument("--stream", action="store_true", help="streamed replies")


def run(options: argparse.Namespace) -> tuple[str, Any, bool]:
    """Met: at half load the median adds at most 5 ms, the slowest hundredth 20, and nothing fails."""
    widths = [int(width) for width in options.models.split(",")]
    with running(_sort(max(widths))) as side:
        halves = uvloop.run(_measure(side, widths, options.stream))
    print("\n" + _table(halves))
    met = all(point.added_p50 <= 5 and point.added_p99 <= 20 and not point.failed for point in halves)
    print("added p50 <= 5 ms and p99 <= 20 ms at half load: " + ("met" if met else "MISSED"))
    name = "fan_out_streamed" if options.stream else "fan_out"
    return name, [asdict(point) for point in halves], met


def _sort(width: int) -> Sort:
    """A Diptych with so many simulated models."""

    def command(port: int, folder: Path) -> list[str]:
        models = [
            {"name": name, "like": "toy-llava", "checkpoint": str(folder), "simulate": SPEED} for name in _names(width)
        ]
        return diptych_with(models, port, folder)

    return Sort("F", f"Diptych with {width} simulated models", "driver", command, model=_names(1)[0])


def _names(width: int) -> list[str]:
    return [f"simulated-{at:02}" for at in range(1, width + 1)]


async def _measure(side: Side, widths: Sequence[int], stream: bool) -> list[Point]:
    halves = []
    for width in widths:
        rate = best = 16.0
        while True:
            point = await _load(side, width, stream, rate)
            print(_line(point), flush=True)
            if point.failed or point.answered < SATURATED * point.asked:
                break
            best, rate = rate, rate * 1.6
        halves.append(await _load(side, width, stream, best / 2, seconds=4 * STEP_S))
        print("half: " + _line(halves[-1]), flush=True)
    return halves


async def _load(side: Side, width: int, stream: bool, rate: float, seconds: float = STEP_S) -> Point:
    """An open loop (Poisson) of `rate` requests a second."""

    def read(data: bytes, _seen: Seen) -> None:
        if (good := data.count(b'"status":"ok"')) != width:
            raise ValueError(f"{good} of {width} models answered well")

    count = max(10, int(rate * seconds))
    asked = list(_bodies(width, stream, count))
    alone = await _engine_alone()
    caller = Caller(f"{side.url}/v1/tasks/vqa", read)
    await caller.closed(asked[:1], 1, stream=False)
    before = side.cpu()
    whole, seen = await caller.open(asked, rate, stream=False, seed=count)
    spent = side.cpu_since(before)
    added = [1000 * (one.seconds - alone) for one in seen if not one.error]
    return Point(
        models=width,
        stream=stream,
        asked=count / seen[-1].due,
        answered=len(added) / whole,
        added_p50=percentile(added, 0.5),
        added_p99=percentile(added, 0.99),
        cpu={role: 1000 * used / count for role, used in spent.items()},
        memory_mb=side.memory(),
        failed=count - len(added),
    )


def _bodies(width: int, stream: bool, count: int) -> Iterator[bytes]:
    made = pictures("1x", count)
    for _ in range(count):
        asked = {"image": data_url(next(made)), "question": "what is it?", "models": _names(width), "stream": stream}
        yield json.dumps(asked).encode()


async def _engine_alone(times: int = 5) -> float:
    """Seconds that the simulated engine takes with nothing before it, on this machine now."""
    took = []
    for _ in range(times):
        began = time.perf_counter()
        async for _piece in FakeEngine(**SPEED).generate(Prompt("", None)):  # type: ignore[arg-type]
            pass
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def _line(point: Point) -> str:
    cpu = ", ".join(f"{role} {spent:.1f}" for role, spent in sorted(point.cpu.items()) if spent >= 0.05)
    return (
        f"{point.models} models: {point.answered:.1f} of {point.asked:.1f}/s, added p50 {point.added_p50:.1f} ms, "
        f"p99 {point.added_p99:.1f} ms, failed {point.failed}; CPU ms {cpu}"
    )


def _table(points: Sequence[Point]) -> str:
    rows = ["models  at half load/s  added p50 ms  p99 ms  CPU ms a request  gateway  replicas  MB"]
    for point in points:
        cpu = point.cpu
        rows.append(
            f"{point.models:>6}  {point.asked:>14.1f}  {point.added_p50:>12.1f}  {point.added_p99:>6.1f}  "
            f"{sum(cpu.values()):>16.1f}  {cpu.get('gateway', 0):>7.1f}  {cpu.get('replica', 0):>8.1f}  "
            f"{sum(point.memory_mb.values()):>4.0f}"
        )
    return "\n".join(rows)
