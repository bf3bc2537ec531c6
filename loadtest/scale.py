"""Many models with many replicas on pretended GPUs: throughput as they grow, and the neighbours of a hot model.

`make bench-scale`. Simulated engines of a fixed speed and batch behind the real router, gateway and Ray. Two cores
stand in for a cluster, so the engines are slow: all of them together speak as fast as one gateway can take.
loadtest/NOTES.md says what was found.
"""

import argparse
import asyncio
import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop

from loadtest.caller import Caller, Seen
from loadtest.ledger import percentile
from loadtest.pictures import body, pictures
from loadtest.sides import Side, Sort, diptych_with, running

BATCH, REPLY_S = 4, 0.8
CAPACITY = BATCH / REPLY_S
"""Replies a second of one replica."""
ENGINE = {"replies": "one two three four", "first_delay_s": REPLY_S / 2, "delay_s": REPLY_S / 8, "slots": BATCH}
QUEUE = 32
"""max_ongoing_requests: what more comes to a replica is refused."""
SECONDS = 12.0
FLOOD = 5
"""So many times the capacity of its replicas is asked of the hot model."""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", type=int, default=8)
    parser.add_argument("--replicas", default="1,2,4")


def run(options: argparse.Namespace) -> tuple[str, Any, bool]:
    """Met: throughput grows with the replicas, and no neighbour of a flooded model suffers."""
    names = [f"simulated-{at:02}" for at in range(1, options.models + 1)]
    found: dict[str, Any] = {"grow": [], "hot": [], "autoscale": {}}
    for replicas in map(int, options.replicas.split(",")):
        with running(_sort(names, {"replicas": replicas})) as side:
            found["grow"].append(uvloop.run(_grow(side, names, replicas)))
            found["hot"].append(uvloop.run(_hot(side, names, replicas)))
    with running(_sort(names, {"autoscaling": {"max_replicas": 4, "target_ongoing_requests": BATCH}})) as side:
        found["autoscale"] = uvloop.run(_autoscale(side, names))
    grew = all(row["share"] >= 0.8 for row in found["grow"])
    spared = all(row["failed"] == 0 and row["p95_ratio"] <= 1.5 for row in found["hot"])
    print(f"\nat least 80% of what the replicas can do: {'met' if grew else 'MISSED'}")
    print(f"beside a flooded model no request fails and p95 stays within 1.5 times: {'met' if spared else 'MISSED'}")
    return "scale", found, grew and spared


def _sort(names: Sequence[str], how_many: dict[str, Any]) -> Sort:
    """A Diptych with these simulated models, a pretended GPU for each replica."""

    def command(port: int, folder: Path) -> list[str]:
        engine = {"num_gpus": 1, "num_cpus": 0.1, "simulate": ENGINE, "max_ongoing_requests": QUEUE, **how_many}
        models = [{"name": name, "like": "toy-llava", "checkpoint": str(folder), **engine} for name in names]
        return diptych_with(models, port, folder)

    return Sort("S", f"Diptych with {len(names)} simulated models", "driver", command, model=names[0])


async def _grow(side: Side, names: Sequence[str], replicas: int) -> dict[str, float]:
    """Every batch kept full: replies a second to what the replicas can do."""
    await _all_there(side, names, replicas)
    able = CAPACITY * replicas * len(names)
    clients = int(1.5 * BATCH * replicas * len(names))
    before = side.cpu()
    seconds, seen = await Caller(side.chat).closed(_bodies(names, int(able * SECONDS)), clients, stream=False)
    spent = sum(side.cpu_since(before).values())
    rate = sum(not one.error for one in seen) / seconds
    print(
        f"{len(names)} models x {replicas}: {rate:.0f} replies/s, {100 * rate / able:.0f}% of what they can do; "
        f"{1000 * spent / len(seen):.1f} ms of CPU a request, {sum(side.memory().values()):.0f} MB",
        flush=True,
    )
    return {"replicas": replicas, "rate": rate, "share": rate / able, "cpu_ms": 1000 * spent / len(seen)}


async def _hot(side: Side, names: Sequence[str], replicas: int) -> dict[str, float]:
    """The first model is asked FLOOD times what it can do, the others half of it: their p95 before and meanwhile."""
    half, most = CAPACITY * replicas / 2, CAPACITY * replicas * FLOOD
    others = names[1:]

    async def neighbours() -> list[Seen]:
        rate = half * len(others)
        return (await Caller(side.chat).open(_bodies(others, int(rate * SECONDS)), rate, stream=False, seed=1))[1]

    calm = await neighbours()
    flood = Caller(side.chat).open(_bodies(names[:1], int(most * SECONDS)), most, stream=False, seed=2)
    beside, (_, hot) = await asyncio.gather(neighbours(), flood)
    before, after = (1000 * percentile([one.seconds for one in seen], 0.95) for seen in (calm, beside))
    refused = [one for one in hot if one.error]
    refused_ms = 1000 * percentile([one.seconds for one in refused], 0.5)
    print(
        f"  {replicas} each, one asked {FLOOD} times its capacity: {len(hot) - len(refused)} answered, {len(refused)} "
        f"refused after {refused_ms:.0f} ms; the others' p95 {before:.0f} -> "
        f"{after:.0f} ms, {sum(bool(one.error) for one in beside)} of {len(beside)} failed",
        flush=True,
    )
    failed = sum(bool(one.error) for one in beside)
    return {"replicas": replicas, "p95_ratio": after / before, "failed": failed, "refused": len(refused)}


async def _autoscale(side: Side, names: Sequence[str]) -> dict[str, Any]:
    """The first model is kept busy for four: when its replicas come, and what is answered then."""
    began, seen, counts = time.perf_counter(), list[Seen](), dict[int, float]()
    while time.perf_counter() - began < 240:
        rate = CAPACITY * 4
        seen = (await Caller(side.chat).open(_bodies(names[:1], int(rate * 5)), rate, stream=False, seed=3))[1]
        counts.setdefault(_replicas(side, names[0]), time.perf_counter() - began)
        answered = sum(not one.error for one in seen)
        if answered >= 0.95 * len(seen):
            break
    others = {_replicas(side, name) for name in names[1:]}
    told = ", ".join(f"{count} after {seconds:.0f} s" for count, seconds in sorted(counts.items()))
    print(
        f"autoscaling, one model asked what four replicas can do: {told}; then {100 * answered / len(seen):.0f}% of "
        f"requests are answered; the other models have {', '.join(map(str, sorted(others)))} each",
        flush=True,
    )
    return {"counts": counts, "answered": answered / len(seen), "others": sorted(others)}


async def _all_there(side: Side, names: Sequence[str], replicas: int) -> None:
    """Until every replica runs and its gateway has found it."""
    while min(_replicas(side, name) for name in names) < replicas:
        await asyncio.sleep(0.5)
    await asyncio.sleep(5)


def _replicas(side: Side, name: str) -> int:
    return sum(f"ServeReplica:diptych:{name}" in line for line in side.tree.lines())


def _bodies(names: Sequence[str], count: int) -> list[bytes]:
    """Each about another picture: about one alone, a model's replicas would be as busy as bounded loads let them."""
    made = pictures("1x", 0)
    turn = itertools.islice(itertools.cycle(names), count)
    return [body(name, next(made), tokens=16, stream=False) for name in turn]
