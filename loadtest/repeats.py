"""Several questions about each picture, to two replicas of a model: is it worth asking the one that knows the picture?

`make bench-repeats`. The toy on the real vLLM, twice over: once each picture keeps to its replica, once the least busy
replica gets each question (`keeps_pictures`). Rounds alternate. loadtest/NOTES.md says what was found.
"""

import argparse
import asyncio
import itertools
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from loadtest.alone import alone
from loadtest.caller import Caller
from loadtest.pictures import body, pictures
from loadtest.sides import MODEL, Refused, Side, Sort, diptych_with, running

PEOPLE = 8
"""Each asks QUESTIONS about one picture, one after the other, then about the next."""
QUESTIONS = ("what is in the picture?", "how many shapes are there?", "is there a circle?", "what colour is it?")
COUNTS = {"1x": 160, "12mp": 48}
"""Pictures of a block, by size."""


@dataclass(frozen=True)
class Round:
    """kept over spread, of one size. cpu: milliseconds of a request outside the engine and in it."""

    size: str
    rate: float
    cpu: tuple[float, float]


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=3)


def run(options: argparse.Namespace) -> tuple[str, Any, bool]:
    """Measure both in turn. There is no target."""
    rounds = []
    with running(_sort("K", True)) as kept, running(_sort("L", False)) as spread:
        for at in range(options.rounds):
            for size in COUNTS:
                with alone(kept, [kept, spread]):
                    first = uvloop.run(_block(kept, size, at))
                with alone(spread, [kept, spread]):
                    second = uvloop.run(_block(spread, size, at))
                rounds.append(Round(size, first[0] / second[0], (first[1], second[1])))
                print(f"{at} {rounds[-1]}", flush=True)
    for size in COUNTS:
        mine = [one for one in rounds if one.size == size]
        rates = [one.rate for one in mine]
        kept_ms, spread_ms = (statistics.median(one.cpu[at] for one in mine) for at in (0, 1))
        print(
            f"{size}: {len(QUESTIONS)} questions about each picture, kept to spread: {statistics.median(rates):.2f} "
            f"[{min(rates):.2f} to {max(rates):.2f}] times the replies/s, CPU of a request {kept_ms:.0f} and "
            f"{spread_ms:.0f} ms"
        )
    return "repeats", [vars(one) for one in rounds], True


def _sort(key: str, keeps: bool) -> Sort:
    """Two replicas of the toy."""

    def command(port: int, folder: Path) -> list[str]:
        models = [{"name": MODEL, "replicas": 2, "keeps_pictures": keeps}]
        return diptych_with(models, port, folder)

    return Sort(key, f"pictures {'kept' if keeps else 'spread'}", "driver", command)


async def _block(side: Side, size: str, at: int) -> tuple[float, float]:
    """Replies a second, and milliseconds of CPU a request."""
    made = pictures(size, seed=1000 + at)
    drawn = [next(made) for _ in range(COUNTS[size])]
    asked = [[body(MODEL, one, tokens=4, stream=False, text=question) for question in QUESTIONS] for one in drawn]
    caller, before, began = Caller(side.chat), side.cpu(), time.perf_counter()
    lanes = [list(itertools.chain.from_iterable(asked[person::PEOPLE])) for person in range(PEOPLE)]
    done = await asyncio.gather(*(caller.closed(lane, 1, stream=False) for lane in lanes))
    seconds = time.perf_counter() - began
    seen = [one for _, lane in done for one in lane]
    spent = sum(side.cpu_since(before).values())
    failed = [one.error for one in seen if one.error]
    if failed:
        raise Refused(f"{len(failed)} requests failed: {failed[0]}")
    return len(seen) / seconds, 1000 * spent / len(seen)
