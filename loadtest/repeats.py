"""Several questions about each picture, to two replicas of a model: is it worth asking the one that knows the picture?

`make bench-repeats`. The toy on the real vLLM, twice over: once each picture keeps to its replica, once the least busy
replica gets each question (`keeps_pictures`). Rounds alternate. loadtest/NOTES.md has the results.
"""

import argparse
import asyncio
import itertools
import statistics
import time
from typing import Any

import uvloop

from loadtest.arguments import whole
from loadtest.client import Client
from loadtest.pictures import body, pictures
from loadtest.servers import MODEL, NotAnswering, Server, ServerKind, diptych, only, running

CLIENTS = 8
"""Each asks QUESTIONS about one picture, one after the other, then about the next."""
QUESTIONS = ("what is in the picture?", "how many shapes are there?", "is there a circle?", "what colour is it?")
COUNTS = {"1x": 160, "12mp": 48}
"""Pictures of a block, by size."""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=whole(1), default=3)


def run(options: argparse.Namespace) -> tuple[str, Any, bool]:
    """Measure both in turn. There is no target."""
    rounds: list[dict[str, Any]] = []  # cpu: milliseconds of a request, kept and spread
    with running(_kind("K", True)) as kept, running(_kind("L", False)) as spread:
        for at in range(options.rounds):
            for size in COUNTS:
                with only([kept], [kept, spread]):
                    first = uvloop.run(_measure(kept, size, at))
                with only([spread], [kept, spread]):
                    second = uvloop.run(_measure(spread, size, at))
                rounds.append({"size": size, "rate": first[0] / second[0], "cpu": (first[1], second[1])})
                print(f"{at} {rounds[-1]}", flush=True)
    for size in COUNTS:
        same = [row for row in rounds if row["size"] == size]
        rates = [row["rate"] for row in same]
        kept_ms, spread_ms = (statistics.median(row["cpu"][at] for row in same) for at in (0, 1))
        print(
            f"{size}: {len(QUESTIONS)} questions about each picture, kept to spread: {statistics.median(rates):.2f} "
            f"[{min(rates):.2f} to {max(rates):.2f}] times the replies/s, CPU of a request {kept_ms:.0f} and "
            f"{spread_ms:.0f} ms"
        )
    return "repeats", rounds, True


def _kind(key: str, keeps: bool) -> ServerKind:
    models = [{"name": MODEL, "replicas": 2, "keeps_pictures": keeps}]
    return diptych(key, f"pictures {'kept' if keeps else 'spread'}", models)


async def _measure(server: Server, size: str, round: int) -> tuple[float, float]:
    """Measure the replies a second, and the milliseconds of CPU a request."""
    drawn = itertools.islice(pictures(size, seed=1000 + round), COUNTS[size])
    questions = [[body(MODEL, picture, tokens=4, stream=False, text=text) for text in QUESTIONS] for picture in drawn]
    lanes = [list(itertools.chain.from_iterable(questions[first::CLIENTS])) for first in range(CLIENTS)]
    client, before, began = Client(server.chat), server.cpu(), time.perf_counter()
    done = await asyncio.gather(*(client.closed(lane, 1, stream=False) for lane in lanes))
    seconds = time.perf_counter() - began
    results = [result for _, lane in done for result in lane]
    spent = sum(server.cpu_since(before).values())
    failed = [result.error for result in results if result.error]
    if failed:
        raise NotAnswering(f"{len(failed)} requests failed: {failed[0]}")
    return len(results) / seconds, 1000 * spent / len(results)
