"""Many models with many replicas on pretended GPUs: throughput as they grow, and the neighbours of a hot model.

`make bench-scale`. Simulated engines of a fixed speed and batch behind the real router, gateway and Ray. Two cores
stand in for a cluster, so the engines are slow: all of them together speak as fast as one gateway can take.
loadtest/NOTES.md has the results.
"""

import argparse
import asyncio
import itertools
import time
from collections.abc import Sequence
from typing import Any

import uvloop

from loadtest.arguments import several, whole
from loadtest.client import Client, Result
from loadtest.ledger import percentile
from loadtest.pictures import body, pictures
from loadtest.servers import Server, ServerKind, diptych, running, simulated

BATCH, REPLY_S = 4, 0.8
CAPACITY = BATCH / REPLY_S
"""Replies a second of one replica."""
ENGINE = {"replies": "one two three four", "first_delay_s": REPLY_S / 2, "delay_s": REPLY_S / 8, "slots": BATCH}
QUEUE = 32
"""max_ongoing_requests: a replica refuses further requests."""
SECONDS = 12.0
FLOOD = 5
"""The hot model is asked so many times the capacity of its replicas."""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", type=whole(2), default=8)
    parser.add_argument("--replicas", type=several(whole(1)), default="1,2,4")


def run(options: argparse.Namespace) -> tuple[str, Any, bool]:
    """Met: throughput grows with the replicas, and no neighbour of a flooded model suffers."""
    names = [f"simulated-{at:02}" for at in range(1, options.models + 1)]
    results: dict[str, Any] = {"grow": [], "hot": [], "autoscale": {}}
    for replicas in options.replicas:
        with running(_kind(names, replicas=replicas)) as server:
            results["grow"].append(uvloop.run(_grow(server, names, replicas)))
            results["hot"].append(uvloop.run(_hot(server, names, replicas)))
    with running(_kind(names, autoscaling={"max_replicas": 4, "target_ongoing_requests": BATCH})) as server:
        results["autoscale"] = uvloop.run(_autoscale(server, names))
    grew = all(row["share"] >= 0.8 for row in results["grow"])
    spared = all(row["failed"] == 0 and row["p95_ratio"] <= 1.5 for row in results["hot"])
    print(f"\nat least 80% of what the replicas can do: {'met' if grew else 'MISSED'}")
    print(f"beside a flooded model no request fails and p95 stays within 1.5 times: {'met' if spared else 'MISSED'}")
    return "scale", results, grew and spared


def _kind(names: Sequence[str], **fields: Any) -> ServerKind:
    """Return a Diptych with these simulated models, a pretended GPU for each replica."""
    fields |= {"num_gpus": 1, "num_cpus": 0.1, "max_ongoing_requests": QUEUE}
    models = [simulated(name, ENGINE, **fields) for name in names]
    return diptych("S", f"Diptych with {len(names)} simulated models", models)


async def _grow(server: Server, names: Sequence[str], replicas: int) -> dict[str, float]:
    """Keep every batch full. Measure replies a second, and their share of the replicas' capacity."""
    await _wait_for_replicas(server, names, replicas)
    able = CAPACITY * replicas * len(names)
    clients = int(1.5 * BATCH * replicas * len(names))
    before = server.cpu()
    seconds, results = await Client(server.chat).closed(_bodies(names, int(able * SECONDS)), clients, stream=False)
    spent = sum(server.cpu_since(before).values())
    rate = sum(not result.error for result in results) / seconds
    print(
        f"{len(names)} models x {replicas}: {rate:.0f} replies/s, {100 * rate / able:.0f}% of what they can do; "
        f"{1000 * spent / len(results):.1f} ms of CPU a request, {sum(server.memory().values()):.0f} MB",
        flush=True,
    )
    return {"replicas": replicas, "rate": rate, "share": rate / able, "cpu_ms": 1000 * spent / len(results)}


async def _hot(server: Server, names: Sequence[str], replicas: int) -> dict[str, float]:
    """Ask the first model FLOOD times its capacity, the others half of theirs: their p95 before and meanwhile."""
    half, most = CAPACITY * replicas / 2, CAPACITY * replicas * FLOOD
    others = names[1:]

    async def neighbours() -> list[Result]:
        rate = half * len(others)
        return (await Client(server.chat).open(_bodies(others, int(rate * SECONDS)), rate, stream=False, seed=1))[1]

    calm = await neighbours()
    flood = Client(server.chat).open(_bodies(names[:1], int(most * SECONDS)), most, stream=False, seed=2)
    beside, (_, hot) = await asyncio.gather(neighbours(), flood)
    before, after = (1000 * percentile([result.seconds for result in results], 0.95) for results in (calm, beside))
    refused = [result for result in hot if result.error]
    failed = sum(bool(result.error) for result in beside)
    refused_ms = 1000 * percentile([result.seconds for result in refused], 0.5)
    print(
        f"  {replicas} each, one asked {FLOOD} times its capacity: {len(hot) - len(refused)} answered, {len(refused)} "
        f"refused after {refused_ms:.0f} ms; the others' p95 {before:.0f} -> "
        f"{after:.0f} ms, {failed} of {len(beside)} failed",
        flush=True,
    )
    return {"replicas": replicas, "p95_ratio": after / before, "failed": failed, "refused": len(refused)}


async def _autoscale(server: Server, names: Sequence[str]) -> dict[str, Any]:
    """Ask the first model as much as four replicas can do: when its replicas come, and the share answered then."""
    began, results, counts = time.perf_counter(), list[Result](), dict[int, float]()
    while time.perf_counter() - began < 240:
        rate = CAPACITY * 4
        results = (await Client(server.chat).open(_bodies(names[:1], int(rate * 5)), rate, stream=False, seed=3))[1]
        counts.setdefault(_replicas(server, names[0]), time.perf_counter() - began)
        answered = sum(not result.error for result in results)
        if answered >= 0.95 * len(results):
            break
    others = {_replicas(server, name) for name in names[1:]}
    growth = ", ".join(f"{count} after {seconds:.0f} s" for count, seconds in sorted(counts.items()))
    print(
        f"autoscaling, one model asked what four replicas can do: {growth}; then {100 * answered / len(results):.0f}% "
        f"of requests are answered; the other models have {', '.join(map(str, sorted(others)))} each",
        flush=True,
    )
    return {"counts": counts, "answered": answered / len(results), "others": sorted(others)}


async def _wait_for_replicas(server: Server, names: Sequence[str], replicas: int) -> None:
    """Wait until every replica runs and the gateway has found it."""
    while min(_replicas(server, name) for name in names) < replicas:
        await asyncio.sleep(0.5)
    await asyncio.sleep(5)


def _replicas(server: Server, name: str) -> int:
    return sum(f"ServeReplica:{name}:{name}" in line for line in server.tree.command_lines())


def _bodies(names: Sequence[str], count: int) -> list[bytes]:
    """Return requests, each about another picture: those about the same one would keep to the same replica."""
    turns = itertools.islice(zip(itertools.cycle(names), pictures("1x", 0), strict=False), count)
    return [body(name, picture, tokens=16, stream=False) for name, picture in turns]
