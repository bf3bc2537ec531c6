"""Measure gateways that have many replicas: real pools and connections between processes of this machine, without Ray.

`make bench-gateways`. All replicas are servers of one process with simulated engines; each gateway is a process with
the pool of one model. Measured: the time until all replicas are connected, a gateway's processor time and bytes while
nothing is asked (heartbeats, and a look at every connection), the processor time that a request takes of it, and how
long its event loop stood still. What Ray adds, a search through its handle every REFRESH_S, is not measured here.
loadtest/NOTES.md has the results.
"""

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import psutil
import uvloop

from deployments.args import ModelArgs
from deployments.routing.pool import Pool
from deployments.routing.replica_route import Quarantine, ReplicaRoute
from deployments.routing.replicas import Address, Replicas
from loadtest.arguments import positive, several, whole
from loadtest.ledger import percentile
from loadtest.processes import processor
from serve.api.loop_lag import LoopLag
from serve.engines.fake import FakeEngine
from serve.media.image import Image
from serve.models import MODELS
from serve.router.route import Status
from serve.tasks.reply import Delta, Reply
from serve.tasks.vqa import VqaRequest
from serve.transport.server import StreamServer
from serve.worker import Worker, joined

MODEL = "toy-llava"
REPLY_S = 0.2
WAIT_S = 60.0
LAG_EVERY_S = 0.05
"""Seconds between two looks at the event loop."""
MOST_SHARE, MOST_LAG_S = 0.05, 0.05
"""Of a processor that an idle gateway may take for its replicas, and for how long its event loop may stand still."""
HEAD = (
    "gateways  replicas  all found ms  idle CPU ms/s  idle KB/s  requests/s  p50 ms  p99 ms  CPU ms each  worst lag ms"
)


@dataclass(frozen=True)
class Row:
    """A number of gateways with a number of replicas.

    idle_cpu_ms, idle_kb: of a gateway in a second without requests. added: beyond the engine's time. request_cpu_ms: of
    the gateway.
    """

    gateways: int
    replicas: int
    found_ms: float
    idle_cpu_ms: float
    idle_kb: float
    answered: float
    added_p50_ms: float
    added_p99_ms: float
    request_cpu_ms: float
    worst_lag_ms: float
    failed: int


def options(parser: argparse.ArgumentParser) -> None:
    sizes = "1x1,1x10,1x100,4x100,4x400"
    parser.add_argument("--sizes", type=several(_size), default=sizes, help="gateways x replicas")
    parser.add_argument("--rate", type=positive, default=80, help="requests a second, of all gateways together")
    parser.add_argument("--seconds", type=positive, default=8, help="of each measurement")


def run(options: argparse.Namespace) -> tuple[str, Any, bool]:
    """Met: with 100 replicas no gateway takes MOST_SHARE of a processor for them or stands still for MOST_LAG_S."""
    rows = []
    print(HEAD)
    for gateways, replicas in options.sizes:
        rows.append(_measure(gateways, replicas, options.rate, options.seconds))
        print(_line(rows[-1]), flush=True)
    large = [row for row in rows if row.replicas <= 100]
    met = all(
        row.idle_cpu_ms <= 1000 * MOST_SHARE and row.worst_lag_ms <= 1000 * MOST_LAG_S and not row.failed
        for row in large
    )
    print(f"idle <= {MOST_SHARE:.0%} of a processor, lag <= {1000 * MOST_LAG_S:.0f} ms: {'met' if met else 'MISSED'}")
    print(processor())
    return "gateways", {"processor": processor(), "rows": [asdict(row) for row in rows]}, met


def _size(text: str) -> tuple[int, int]:
    gateways, _, replicas = text.partition("x")
    return whole(1)(gateways), whole(1)(replicas)


def _line(row: Row) -> str:
    return (
        f"{row.gateways:>8}  {row.replicas:>8}  {row.found_ms:>12.0f}  {row.idle_cpu_ms:>13.1f}  {row.idle_kb:>9.1f}  "
        f"{row.answered:>10.1f}  {row.added_p50_ms:>6.1f}  {row.added_p99_ms:>6.1f}  {row.request_cpu_ms:>11.1f}  "
        f"{row.worst_lag_ms:>12.1f}"
    )


def _measure(gateways: int, replicas: int, rate: float, seconds: float) -> Row:
    with _processes([["replicas", str(replicas)]]) as (servers,):
        addresses = _read(servers)
        share = json.dumps({"addresses": addresses, "rate": rate / gateways, "seconds": seconds})
        with _processes([["gateway"]] * gateways) as asking:
            for process in asking:
                _write(process, share)
            seconds_to_all = [_read(process) for process in asking]
            sent = psutil.net_io_counters(pernic=True)["lo"].bytes_sent
            for process in asking:
                _write(process, "idle")
            idle = [_read(process) for process in asking]
            sent = psutil.net_io_counters(pernic=True)["lo"].bytes_sent - sent
            for process in asking:
                _write(process, "ask")
            results = [_read(process) for process in asking]
    added = [1000 * (latency - REPLY_S) for each in results for latency in each["latencies"]]
    return Row(
        gateways,
        replicas,
        found_ms=1000 * max(seconds_to_all),
        idle_cpu_ms=1000 * sum(idle) / gateways / seconds,
        idle_kb=sent / gateways / seconds / 1000,
        answered=len(added) / max(each["seconds"] for each in results),
        added_p50_ms=percentile(added, 0.5),
        added_p99_ms=percentile(added, 0.99),
        request_cpu_ms=1000 * sum(each["cpu"] for each in results) / max(1, len(added)),
        worst_lag_ms=1000 * max(each["lag"] for each in results),
        failed=sum(each["failed"] for each in results),
    )


@contextlib.contextmanager
def _processes(parts: Sequence[Sequence[str]]) -> Iterator[list["subprocess.Popen[str]"]]:
    """Run a process of this module for each of `parts`, and end them with the block."""
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "loadtest.gateways", *part],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for part in parts
    ]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.communicate()


def _write(process: "subprocess.Popen[str]", line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def _read(process: "subprocess.Popen[str]") -> Any:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


async def _serve(replicas: int) -> None:
    """Serve the replicas until the process is killed. Prints their addresses."""
    worker = Worker(MODELS[MODEL], FakeEngine("one two", first_delay_s=REPLY_S, kept=0))
    await worker.start()

    async def statuses() -> dict[str, Status]:
        return {worker.name: await worker.status()}

    methods = {"answer": lambda task, request, model: worker.answer(task, request)}
    servers = [StreamServer(methods, statuses, joined, simple=(Delta,)) for _ in range(replicas)]
    print(json.dumps([[await each.start("127.0.0.1"), each.token.hex()] for each in servers]), flush=True)
    await asyncio.Event().wait()


async def _ask(read: Callable[[], str]) -> None:
    """Be a gateway: connect, be idle for a while, then ask at a rate. Prints a line of JSON after each."""
    given = json.loads(read())
    addresses = [Address("127.0.0.1", port, bytes.fromhex(token)) for port, token in given["addresses"]]

    async def find(report: Callable[[Address], None]) -> None:
        for address in addresses:
            report(address)

    replicas = Replicas(find, lambda: asyncio.sleep(WAIT_S))
    route = ReplicaRoute(MODELS[MODEL], Pool(replicas, ModelArgs(name=MODEL)), Quarantine())
    began = time.monotonic()
    while len(await replicas.available()) < len(addresses):
        await asyncio.sleep(0.005)
    print(json.dumps(time.monotonic() - began), flush=True)
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, read)
    spent = time.process_time()
    await asyncio.sleep(given["seconds"])
    print(json.dumps(time.process_time() - spent), flush=True)
    await loop.run_in_executor(None, read)
    lag = LoopLag(every_s=LAG_EVERY_S)
    lag.start()
    latencies: list[float] = []
    spent, began = time.process_time(), loop.time()
    asking = []
    for number in range(int(given["rate"] * given["seconds"])):
        await asyncio.sleep(began + number / given["rate"] - loop.time())
        asking.append(loop.create_task(_ask_about_a_picture(route, number, latencies)))
    failed = sum(not good for good in await asyncio.gather(*asking))
    print(
        json.dumps(
            {
                "latencies": latencies,
                "seconds": loop.time() - began,
                "cpu": time.process_time() - spent,
                "lag": lag.worst(),
                "failed": failed,
            }
        ),
        flush=True,
    )


async def _ask_about_a_picture(route: ReplicaRoute, number: int, latencies: list[float]) -> bool:
    """Ask about a picture of 224 x 224. Return whether it was answered."""
    pixels = np.full((224, 224, 3), number % 256, np.uint8)
    request = VqaRequest(image=Image(pixels, digest=f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}"), question="what?")
    began = time.monotonic()
    async with contextlib.aclosing(route.answer("vqa", request)) as events:
        *_, last = [event async for event in events]
    latencies.append(time.monotonic() - began)
    return isinstance(last, Reply) and last.status == "ok"


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[2])) if sys.argv[1] == "replicas" else _ask(sys.stdin.readline))
