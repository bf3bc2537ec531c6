"""Requests made to stop, fill or fool the server, each beside two ordinary clients: `make hostile`.

While each input is sent, a client asks /health every 50 ms and another asks about a small picture all the time, from a
process of their own. Judged: how long those two waited, the memory of the gateway and the media processes, the answers
to the input, and what is left of it later. README.md, "Hostile requests".
"""

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

import uvloop

from loadtest.hostile_inputs import LLAVA, PALIGEMMA, Hostile, inputs
from loadtest.probes import EVERY_S, HEALTH, PICTURE, Probes
from loadtest.processes import MemoryWatch, processor
from loadtest.raw_http import Response, exchange
from loadtest.response_reader import UNREAD
from loadtest.servers import NotAnswering, diptych, fetch, metrics, running

HEALTH_S = 0.15
LATER_S = 0.3
"""How much later than usual a small picture may be answered."""
REPLICA_GROWS = 600 * 2**20
"""Bytes that one replica may grow by for one input; a square of 16,384 is 805 MB."""
QUIET_S, BEFORE_S, AFTER_S, SETTLES_S = 6.0, 0.2, 0.4, 8.0
"""How long the two clients are measured before the first input, before each, after it; how long leftovers may stay."""
MEMORY_MB = 1228
"""The memory budget of a gateway in its pod of 2 GiB (k8s/): 60 % of it."""
NICENESS = 19
"""The nice value of the hostile client, which would really run on a machine of its own."""
BUDGET, HELD = "diptych_memory_budget_bytes", "diptych_memory_held_bytes"
RUNNING, OWED = "diptych_requests_running", "diptych_model_requests"


@dataclass
class Row:
    """The numbers of an input. Times in seconds, memory in MiB above that before the first input; faults: in words."""

    kind: str
    name: str
    requests: int
    statuses: str
    seconds: float
    health: float
    later: float
    memory: float
    replica: float
    left: str
    faults: list[str]
    tries: int = 1


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help="inputs whose kind or name has it")
    parser.add_argument("--list", action="store_true", help="print their names and end")
    parser.add_argument("--url", type=_loopback, help="a server of this machine that runs already")
    parser.set_defaults(out="build/hostile")


def run(options: argparse.Namespace) -> tuple[str, Any, bool]:
    """Send every input. Met: none was at fault. Raises NotAnswering where there is none to send."""
    texts = [text.lower() for text in options.only] or [""]
    names = {f"{hostile.kind} {hostile.name}".lower(): hostile for hostile in inputs()}
    chosen = [hostile for name, hostile in names.items() if any(text in name for text in texts)]
    if options.list:
        print("\n".join(f"{hostile.kind:<18} {hostile.name}" for hostile in chosen))
        sys.exit()
    if not chosen:
        raise NotAnswering("--only names no input: --list has them all")
    try:
        with _server(options.url) as url:
            rows = uvloop.run(_ask_all(url, chosen))
    except (OSError, LookupError) as error:
        raise NotAnswering(str(error)) from error
    bad = sum(bool(row.faults) for row in rows)
    print(f"\n{len(rows) - bad} of {len(rows)} inputs ok.")
    return "hostile", [asdict(row) for row in rows], not bad


def _loopback(url: str) -> str:
    address = urlsplit(url)
    if address.scheme != "http" or address.hostname not in ("127.0.0.1", "localhost") or not address.port:
        raise argparse.ArgumentTypeError("only http://127.0.0.1:PORT: nobody else is to be harmed")
    return f"http://127.0.0.1:{address.port}"


@contextlib.contextmanager
def _server(url: str | None) -> Iterator[str]:
    """Yield the URL of the running server, or of one of both toys that runs until the block ends."""
    if url is not None:
        yield url
        return
    models = [{"name": name} for name in (LLAVA, PALIGEMMA)]
    with running(diptych("H", "Diptych", models, gateway={"memory_mb": MEMORY_MB})) as server:
        while not _is_ready(server.url):
            time.sleep(0.5)
        yield server.url


def _is_ready(url: str) -> bool:
    with contextlib.suppress(OSError):
        return set(json.loads(fetch(f"{url}/ready"))["models"].values()) == {"ready"}
    return False


async def _ask_all(url: str, chosen: Sequence[Hostile]) -> list[Row]:
    bench = Bench(url)
    try:
        await bench.measure_quiet()
        print(bench.heading(), flush=True)
        rows = []
        for hostile in chosen:
            row = await bench.ask(hostile)
            if row.faults:  # the second try counts
                row = await bench.ask(hostile, 2)
            rows.append(row)
            print(line(row), flush=True)
        return rows
    finally:
        bench.close()


class Bench:
    """A server and what watches it: two ordinary clients and its memory, with their values before any input."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        assert address.hostname is not None and address.port is not None
        self.url, self.host, self.port = url, address.hostname, address.port
        self.probes = Probes(url, HEALTH, PICTURE)
        os.nice(NICENESS - os.nice(0))  # of what comes from here on: requests and the watch, not the probes
        self.watch = MemoryWatch(self.port)
        self.usual = self.usual_health = 0.0
        self.idle = self.watch.now()
        self.budget: float | None = None

    def close(self) -> None:
        self.watch.close()
        self.probes.close()

    async def measure_quiet(self) -> None:
        """Take the values of the two clients alone. Raises LookupError where they are not answered."""
        await asyncio.sleep(QUIET_S)
        now = time.monotonic()
        pictures = self.probes.during(PICTURE, now - QUIET_S / 2, now)
        if not pictures or any(sample.status != 200 for sample in pictures):
            raise LookupError("A small picture is not answered.")
        self.usual = statistics.median(sample.seconds for sample in pictures)
        self.usual_health = max(sample.seconds for sample in self.probes.during(HEALTH, now - QUIET_S / 2, now))
        self.idle = self.watch.now()
        self.budget = (await self._metrics()).get(BUDGET)

    def heading(self) -> str:
        """Return the state before the first input, and the table's head."""
        budget = "none is stated" if self.budget is None else f"{self.budget / 2**20:.0f} MB"
        return (
            f"{processor()}, load {os.getloadavg()[0]:.1f}. Alone: /health at most "
            f"{1000 * self.usual_health:.0f} ms, a small picture {1000 * self.usual:.0f} ms; gateway and media "
            f"processes {self.idle.gateway / 2**20:.0f} MB; budget: {budget}.\n"
            f"health: slowest answer, ms; later: the small picture's worst above its usual, ms; MB, replica: growth\n"
            f"{'':<6} {'kind':<18} {'input':<50} {'answered':<20} {'s':>5} {'health':>6} {'later':>6} {'MB':>5} "
            f"{'replica':>7}  left"
        )

    async def ask(self, hostile: Hostile, tries: int = 1) -> Row:
        """Send the input once, beside the two clients, and judge their answers and its own."""
        requests = hostile.requests()
        await asyncio.sleep(BEFORE_S)
        self.watch.highest = self.watch.now()
        began = time.monotonic()
        answers = await asyncio.gather(
            *(exchange(self.host, self.port, request, hostile.within_s) for request in requests)
        )
        ended = time.monotonic() + AFTER_S
        await self._wait_for_probes(ended)
        self.watch.look()
        self.probes.send("pause")
        left = await self._left()
        self.probes.send("ask")
        health, pictures = (self.probes.during(which, began, ended) for which in (HEALTH, PICTURE))
        grown, idle = self.watch.highest, self.idle
        row = Row(
            hostile.kind,
            hostile.name,
            len(requests),
            _statuses(answers),
            max(answer.seconds for answer in answers),
            max((sample.seconds for sample in health), default=0.0),
            max((sample.seconds for sample in pictures), default=self.usual) - self.usual,
            max(0, grown.gateway - idle.gateway) / 2**20,
            max(0, grown.replica - idle.replica) / 2**20,
            left,
            [],
            tries,
        )
        beside = [sample.status for sample in (*health, *pictures) if sample.status != 200]
        row.faults = [*faults_in(hostile, answers), *self._harm(row, beside)]
        return row

    def _harm(self, row: Row, beside: Sequence[int]) -> Iterator[str]:
        """Yield the harm that the input did to others."""
        if beside:
            yield f"others were answered {beside[:3]}"
        if row.health > HEALTH_S:
            yield "/health"
        if row.later > LATER_S:
            yield "the small picture"
        if self.budget is not None and row.memory * 2**20 > self.budget:
            yield "memory"
        if row.replica * 2**20 > REPLICA_GROWS:
            yield "a replica's memory"
        if row.left:
            yield "left over"

    async def _left(self) -> str:
        """Return what is left of an input some seconds after its end; empty where it is nothing."""
        until = time.monotonic() + SETTLES_S
        while True:
            values = await self._metrics()
            over = {
                "requests": values.get(RUNNING, 1) - 1,  # the one for /metrics itself
                "models' replies": values.get(OWED, 0),
                "bytes": values.get(HELD, 0),
                "processes": len(self.watch.decoding()),
            }
            if not any(value > 0 for value in over.values()) or time.monotonic() > until:
                return ", ".join(f"{value:.0f} {name}" for name, value in over.items() if value > 0)
            await asyncio.sleep(0.03)

    async def _wait_for_probes(self, ended: float) -> None:
        """Wait until both clients have their answers from before the end, and one from after it."""
        until = ended + 60.0
        while time.monotonic() < until:
            later = (self.probes.during(which, ended, until) for which in (HEALTH, PICTURE))
            if all(any(sample.at > ended for sample in samples) for samples in later):
                return
            await asyncio.sleep(EVERY_S)

    async def _metrics(self) -> dict[str, float]:
        with contextlib.suppress(OSError):
            return await asyncio.to_thread(metrics, self.url)
        return {}


def faults_in(hostile: Hostile, answers: Sequence[Response]) -> list[str]:
    """Return the faults of the answers themselves: a 5xx, none at all, an error of another shape or name."""
    faults = []
    for answer in answers:
        status = answer.status
        if status is None or (status == 0 and hostile.broken and not answer.trouble.startswith("no whole")):
            continue
        error = answer.error()
        if status == 0:
            faults.append(answer.trouble or "no reply")
        elif status >= 500 and not (status == 503 and error and (hostile.late or error["code"] == UNREAD)):
            faults.append(f"status {status}")
        elif status >= 400 and error is None and answer.body:
            faults.append("an error of another shape")
        elif status < 400 and hostile.refused:
            faults.append("it was not refused")
        elif error is not None and hostile.param and not str(error["param"]).startswith(hostile.param):
            faults.append(f"{error['param']} was named and not {hostile.param}")
    return list(dict.fromkeys(faults))


def line(row: Row) -> str:
    """Return its line of the table."""
    verdict = "FAULT" if row.faults else "ok"
    note = f"  {'; '.join(row.faults)}" if row.faults else ""
    left = row.left or "-"
    return (
        f"{verdict:<6} {row.kind:<18} {row.name[:50]:<50} {row.statuses[:20]:<20} {row.seconds:>5.1f} "
        f"{1000 * row.health:>6.0f} {1000 * max(0.0, row.later):>6.0f} {row.memory:>5.0f} {row.replica:>7.0f}  "
        f"{left}{note}"
    )


def _statuses(answers: Sequence[Response]) -> str:
    names = {None: "left", 0: "none"}
    counts = Counter(names.get(answer.status, str(answer.status)) for answer in answers)
    return ", ".join(f"{count} x {name}" for name, count in sorted(counts.items()))
