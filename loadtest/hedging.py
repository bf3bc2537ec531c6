"""What a second copy of a late request, to the model's other replica, could give at best: `make bench-hedging`.

Two replicas of the toy on the real vLLM, an open loop of single questions. Hedged (Dean and Barroso, "The Tail at
Scale", CACM 2013): a copy goes out when a request has taken as long as the 95th percentile; the first of both counts.
It is reckoned from the times that were measured, the copy's drawn from the same ones, and costs nothing: at best.
"""

import argparse
import asyncio
import random
import sys
import time
from pathlib import Path

import aiohttp
import uvloop

from loadtest.ledger import percentile
from loadtest.pictures import bodies
from loadtest.sides import MODEL, Refused, Side, Sort, diptych_with, running

DRAWS = 20


def main() -> int:
    """0: measured; 2: it did not start."""
    parser = argparse.ArgumentParser("hedging", description=__doc__)
    parser.add_argument("--rates", default="10,20,30", help="requests a second")
    parser.add_argument("--seconds", type=float, default=25.0)
    options = parser.parse_args()
    try:
        with running(Sort("H", "two replicas", "driver", _command)) as side:
            uvloop.run(_load(side, 10, 5))
            for rate in map(float, options.rates.split(",")):
                took = uvloop.run(_load(side, rate, options.seconds))
                best = hedged(took)
                print(f"{rate:g}/s, {len(took)} requests, ms: {_line(took)}; hedged at best: {_line(best)}", flush=True)
    except Refused as refused:
        print(f"hedging: {refused}", file=sys.stderr)
        return 2
    return 0


def hedged(took: list[float]) -> list[float]:
    """The same requests, each many times over, had a late one been asked twice. Seconds."""
    late, draw = percentile(took, 0.95), random.Random(2)
    return [one if one <= late else min(one, late + draw.choice(took)) for one in took for _ in range(DRAWS)]


def _command(port: int, folder: Path) -> list[str]:
    return diptych_with([{"name": MODEL, "replicas": 2}], port, folder)


async def _load(side: Side, rate: float, seconds: float) -> list[float]:
    draw, took = random.Random(1), []
    asked = bodies(MODEL, "1x", int(rate * seconds), tokens=16, stream=False, seed=int(rate * 10))

    async def ask(session: aiohttp.ClientSession, body: bytes) -> None:
        began = time.perf_counter()
        async with session.post(side.chat, data=body, headers={"content-type": "application/json"}) as reply:
            await reply.read()
            reply.raise_for_status()
        took.append(time.perf_counter() - began)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        jobs, due = [], time.perf_counter()
        for body in asked:
            due += draw.expovariate(rate)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            jobs.append(asyncio.create_task(ask(session, body)))
        await asyncio.gather(*jobs)
    return took


def _line(took: list[float]) -> str:
    return ", ".join(f"p{100 * share:g} {1000 * percentile(took, share):.0f}" for share in (0.5, 0.95, 0.99))


if __name__ == "__main__":
    sys.exit(main())
