"""Eight models on a GPU that holds three: one is asked all the time, the others now and then.

`make bench-turns`. Simulated engines behind the real router, gateway, scheduler and Ray. The hot model is asked alone,
then beside the others, each of which is asked once in `--every` seconds on average.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any

import uvloop

from deployments.args import GroupArgs
from deployments.groups.policy import MINUTE_S, longest_wait_s
from loadtest.arguments import positive, whole
from loadtest.client import Client
from loadtest.ledger import percentile
from loadtest.pictures import body, pictures
from loadtest.servers import NotAnswering, Server, diptych, fetch, metrics, running, simulated

REPLY_S, SLOTS = 0.4, 4
WAKE_S, SLEEP_S = 1.0, 0.2
ENGINE = {
    "replies": "one two three four",
    "first_delay_s": REPLY_S / 2,
    "delay_s": REPLY_S / 8,
    "slots": SLOTS,
    "wake_s": WAKE_S,
    "sleep_s": SLEEP_S,
}
LEAST_SHARE = 0.9
"""Of the hot model's throughput alone, that it keeps beside the others."""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", type=whole(2), default=8)
    parser.add_argument("--awake", type=whole(1), default=3)
    parser.add_argument("--seconds", type=positive, default=120, help="of the load; alone half as long")
    parser.add_argument("--every", type=positive, default=20, help="seconds between two requests to each other model")


def run(options: argparse.Namespace) -> tuple[str, Any, bool]:
    """Met: every request is answered, waits and switches stay in bounds, the hot model keeps its throughput."""
    names = [f"simulated-{at:02}" for at in range(1, options.models + 1)]
    group = GroupArgs(awake=options.awake, min_awake_s=2, max_wait_s=20, switches_per_minute=40)
    entries = [simulated(name, ENGINE, group="card", num_cpus=0.1, num_gpus=1 / options.awake) for name in names]
    kind = diptych("T", "Diptych", entries, groups={"card": group.model_dump()})
    with running(kind) as server:
        values = uvloop.run(_measure(server, names, options))
    bound = longest_wait_s(group, len(names), REPLY_S * 2 + SLEEP_S + WAKE_S, WAKE_S)
    share = values["hot_rate"] / values["alone_rate"]
    checks = {
        "every request is answered": values["failed"] == 0,
        f"the longest wait is below the bound of {bound:.0f} s": values["longest_s"] < bound,
        f"models wake at most {group.switches_per_minute} times a minute": values["wakes_a_minute"]
        <= group.switches_per_minute,
        f"the hot model keeps {LEAST_SHARE:.0%} of its throughput": share >= LEAST_SHARE,
    }
    print(f"{len(names)} models, {options.awake} awake; all but one are asked every {options.every:g} s on average")
    print(
        f"  the hot one: {values['alone_rate']:.2f} replies/s alone, {values['hot_rate']:.2f} beside them ({share:.0%})"
    )
    print(
        f"  the others: {values['others']} requests, answered after {values['median_s']:.2f} s (p50), "
        f"{values['p95_s']:.2f} s (p95), {values['longest_s']:.2f} s (longest); {values['failed']} of all failed"
    )
    print(f"  models woke {values['wakes']:.0f} times, at most {values['wakes_a_minute']:.0f} times in a minute")
    for what, met in checks.items():
        print(f"{what}: {'met' if met else 'MISSED'}")
    return "turns", {**values, "bound_s": bound, "share": share}, all(checks.values())


async def _measure(server: Server, names: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    await _until_started(server)
    rate = SLOTS / REPLY_S
    alone_s, alone = await Client(server.chat).closed(
        _bodies(names[:1], max(1, int(rate * options.seconds / 2))), SLOTS, stream=False
    )
    counts: list[tuple[float, float]] = []
    counting = asyncio.create_task(_count_wakes(server, counts))
    others_rate = (len(names) - 1) / options.every
    others = _bodies(names[1:], max(1, int(others_rate * options.seconds)))
    (hot_s, hot), (_, cold) = await asyncio.gather(
        Client(server.chat).closed(_bodies(names[:1], max(1, int(rate * options.seconds))), SLOTS, stream=False),
        Client(server.chat).open(others, others_rate, stream=False, seed=24),
    )
    counting.cancel()
    seconds = sorted(result.seconds for result in cold)
    every = [*alone, *hot, *cold]
    failures = [result.error for result in every if result.error]
    if failures:
        print(f"failed: {failures[0]}")
    return {
        "alone_rate": len(alone) / alone_s,
        "hot_rate": len(hot) / hot_s,
        "others": len(cold),
        "failed": len(failures),
        "median_s": percentile(seconds, 0.5),
        "p95_s": percentile(seconds, 0.95),
        "longest_s": seconds[-1],
        "wakes": counts[-1][1] - counts[0][1],
        "wakes_a_minute": max(
            later - count for at, count in counts for then, later in counts if at <= then < at + MINUTE_S
        ),
    }


async def _until_started(server: Server) -> None:
    """Wait until every model was started once, and those that do not fit sleep."""
    until = time.monotonic() + 120
    while "starting" in json.loads(await asyncio.to_thread(fetch, f"{server.url}/ready"))["models"].values():
        if time.monotonic() > until:
            raise NotAnswering(f"not every model has started; the log: {server.log}")
        await asyncio.sleep(0.5)


async def _count_wakes(server: Server, counts: list[tuple[float, float]]) -> None:
    """Append (time, wakings of all models so far) twice a second."""
    while True:
        totals = await asyncio.to_thread(metrics, server.url)
        counts.append((time.monotonic(), totals.get("diptych_model_wakes", 0)))
        await asyncio.sleep(0.5)


def _bodies(names: Sequence[str], count: int) -> list[bytes]:
    """Return requests to the models in turn, each about another picture."""
    drawn = pictures("1x", 0)
    return [body(names[at % len(names)], next(drawn), tokens=16, stream=False) for at in range(count)]
