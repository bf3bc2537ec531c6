"""Requests made to stop, fill or fool the server, each beside two ordinary clients: `make hostile`.

While each input is asked, one client asks /health every 50 ms and another asks about a small picture all the time, from
a process of their own. Judged: how long those two waited, what memory the gateway and the media processes took, what
the input was answered, and what of it was left. README.md, "Hostile requests".
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import statistics
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import uvloop

from loadtest.hostile_inputs import LLAVA, PALIGEMMA, Hostile, inputs
from loadtest.probes import EVERY_S, HEALTH, PICTURE, Probes
from loadtest.raw_http import Answer, exchange
from loadtest.seen_processes import Processes, Watch
from loadtest.sides import Refused, Sort, diptych_with, running

HEALTH_S = 0.15
LATER_S = 0.3
"""So much later than usual a small picture may be answered."""
REPLICA_GROWS = 600 * 2**20
"""Bytes that one replica may grow by for one input; a square of 16,384 is 805 MB."""
QUIET_S, BEFORE_S, AFTER_S, SETTLES_S = 6.0, 0.2, 0.4, 8.0
"""How long the two clients are heard before the first input, before each, after it; how long what is left may stay."""
UNREAD = "parse_error"
"""All models answered, in words that are not the task's form: that is 503, and no fault of the server."""
MEMORY_MB = 1228
"""What a gateway has in its pod of 2 GiB (k8s/): 60 % of it."""
NICENESS = 10
"""Of the hostile client, which a real one would run on a machine of its own."""
BUDGET, HELD = "diptych_memory_budget_bytes", "diptych_memory_held_bytes"
RUNNING, OWED = "diptych_requests_running", "diptych_model_requests"


@dataclass
class Row:
    """What one input did. Times in seconds, memory in MiB above what was held before the first; faults: in words."""

    kind: str
    name: str
    asked: int
    statuses: str
    took: float
    health: float
    later: float
    memory: float
    replica: float
    left: str
    faults: list[str]
    tries: int = 1


def main() -> int:
    """0: every input was ok; 1: one did harm; 2: the server did not start."""
    options = _options()
    chosen = [one for one in inputs() if _wanted(one, options.only)]
    if options.list or not chosen:
        print("\n".join(f"{one.kind:<18} {one.name}" for one in chosen or inputs()))
        return 0 if options.list else 2
    try:
        with _server(options.url, options.memory_mb) as url:
            rows = uvloop.run(_ask_all(url, chosen, options.tries))
    except (Refused, OSError, LookupError) as error:
        print(f"hostile: {error}", file=sys.stderr)
        return 2
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "hostile.json").write_text(json.dumps([asdict(row) for row in rows], indent=1))
    bad = sum(bool(row.faults) for row in rows)
    print(f"\n{len(rows) - bad} of {len(rows)} inputs ok. {out / 'hostile.json'}")
    return 1 if bad else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("hostile", description=__doc__)
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help="inputs whose kind or name has it")
    parser.add_argument("--list", action="store_true", help="print their names and end")
    parser.add_argument("--url", type=_loopback, help="a server of this machine that runs already")
    parser.add_argument(
        "--memory-mb", type=int, default=MEMORY_MB, help="the gateway's budget, where it is started here"
    )
    parser.add_argument("--tries", type=int, default=2, help="an input at fault is asked again; the last try counts")
    parser.add_argument("--out", default="build/hostile")
    return parser.parse_args()


def _loopback(url: str) -> str:
    address = urlsplit(url)
    if address.scheme != "http" or address.hostname not in ("127.0.0.1", "localhost") or not address.port:
        raise argparse.ArgumentTypeError("only http://127.0.0.1:PORT: nobody else is to be harmed")
    return f"http://127.0.0.1:{address.port}"


def _wanted(one: Hostile, only: Sequence[str]) -> bool:
    return not only or any(text.lower() in f"{one.kind} {one.name}".lower() for text in only)


@contextlib.contextmanager
def _server(url: str | None, memory_mb: int) -> Iterator[str]:
    """The server that is asked: the one at `url`, or one of both toys that lives as long as the block."""
    if url is not None:
        yield url
        return

    def command(port: int, folder: Path) -> list[str]:
        models = [{"name": name} for name in (LLAVA, PALIGEMMA)]
        return diptych_with(models, port, folder, gateway={"memory_mb": memory_mb})

    with running(Sort("H", "Diptych", "driver", command)) as side:
        while not _is_ready(side.url):
            time.sleep(0.5)
        yield side.url


def _is_ready(url: str) -> bool:
    """Whether every model can answer."""
    with contextlib.suppress(OSError):
        return set(json.loads(_fetched(f"{url}/ready"))["models"].values()) == {"ready"}
    return False


async def _ask_all(url: str, chosen: Sequence[Hostile], tries: int) -> list[Row]:
    address = urlsplit(url)
    assert address.hostname is not None and address.port is not None
    processes = Processes(address.port)
    probes = Probes(url)
    os.nice(NICENESS - os.nice(0))
    watch = Watch(processes)
    try:
        bench = Bench(address.hostname, address.port, processes, probes, watch)
        await bench.measure_quiet()
        print(bench.heading(), flush=True)
        rows = []
        for one in chosen:
            row = await bench.ask(one)
            while row.faults and row.tries < tries:
                row = await bench.ask(one, row.tries + 1)
            rows.append(row)
            print(line(row), flush=True)
        return rows
    finally:
        watch.close()
        probes.close()


class Bench:
    """One server, what watches it, and how it is when nobody harms it."""

    def __init__(self, host: str, port: int, processes: Processes, probes: Probes, watch: Watch) -> None:
        self.host, self.port = host, port
        self.processes, self.probes, self.watch = processes, probes, watch
        self.usual = self.usual_health = 0.0
        self.idle = processes.memory()
        self.budget: float | None = None

    async def measure_quiet(self) -> None:
        """Hear the two clients alone for a while. Raises LookupError where they are not answered."""
        await asyncio.sleep(QUIET_S)
        now = time.monotonic()
        pictures = self.probes.during(PICTURE, now - QUIET_S / 2, now)
        if not pictures or any(one.status != 200 for one in pictures):
            raise LookupError("A small picture is not answered.")
        self.usual = statistics.median(one.seconds for one in pictures)
        self.usual_health = max(one.seconds for one in self.probes.during(HEALTH, now - QUIET_S / 2, now))
        self.idle = self.processes.memory()
        self.budget = (await self._metrics()).get(BUDGET)

    def heading(self) -> str:
        """Return the state before the first input, and the table's head."""
        budget = "none is stated" if self.budget is None else f"{self.budget / 2**20:.0f} MB"
        return (
            f"{_processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}. Alone: /health at most "
            f"{1000 * self.usual_health:.0f} ms, a small picture {1000 * self.usual:.0f} ms; gateway and media "
            f"processes {self.idle.gateway / 2**20:.0f} MB; budget: {budget}.\n"
            f"health: slowest answer, ms; later: the small picture's worst above its usual, ms; MB, replica: growth\n"
            f"{'':<6} {'kind':<18} {'input':<50} {'answered':<20} {'s':>5} {'health':>6} {'later':>6} {'MB':>5} "
            f"{'replica':>7}  left"
        )

    async def ask(self, hostile: Hostile, tries: int = 1) -> Row:
        """Ask it once, beside the two clients, and judge what they saw."""
        asks = hostile.asks()
        await asyncio.sleep(BEFORE_S)
        self.watch.reset()
        began = time.monotonic()
        answers = await asyncio.gather(*(exchange(self.host, self.port, ask, hostile.within_s) for ask in asks))
        ended = time.monotonic() + AFTER_S
        await self._heard(ended)
        self.watch.look()
        self.probes.pause()
        left = await self._left()
        self.probes.resume()
        health, pictures = (self.probes.during(which, began, ended) for which in (HEALTH, PICTURE))
        grown, idle = self.watch.highest, self.idle
        row = Row(
            hostile.kind,
            hostile.name,
            len(asks),
            _counted(answers),
            max(one.seconds for one in answers),
            max((one.seconds for one in health), default=0.0),
            max((one.seconds for one in pictures), default=self.usual) - self.usual,
            max(0, grown.gateway - idle.gateway) / 2**20,
            max(0, grown.replica - idle.replica) / 2**20,
            left,
            [],
            tries,
        )
        beside = [one.status for one in (*health, *pictures) if one.status != 200]
        row.faults = [*wrong(hostile, answers), *self._harm(row, beside)]
        return row

    def _harm(self, row: Row, beside: Sequence[int]) -> Iterator[str]:
        """What the input did to others."""
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
        """What is still there of an input some seconds after its end; empty where it is nothing."""
        until = time.monotonic() + SETTLES_S
        while True:
            metrics = await self._metrics()
            over = {
                "requests": metrics.get(RUNNING, 1) - 1,  # the one for /metrics itself
                "models' replies": metrics.get(OWED, 0),
                "bytes": metrics.get(HELD, 0),
                "processes": len(self.processes.decoding()),
            }
            if not any(value > 0 for value in over.values()) or time.monotonic() > until:
                return ", ".join(f"{value:.0f} {name}" for name, value in over.items() if value > 0)
            await asyncio.sleep(0.03)

    async def _heard(self, ended: float) -> None:
        """Wait until both clients have been answered what they asked before the end, and once after it."""
        until = ended + 60.0
        while time.monotonic() < until:
            later = (self.probes.during(which, ended, until) for which in (HEALTH, PICTURE))
            if all(any(one.at > ended for one in samples) for samples in later):
                return
            await asyncio.sleep(EVERY_S)

    async def _metrics(self) -> dict[str, float]:
        """Return each metric's sum over its labels."""
        url = f"http://{self.host}:{self.port}/metrics"
        try:
            text = await asyncio.to_thread(_fetched, url)
        except OSError:
            return {}
        found: Counter[str] = Counter()
        for name, value in re.findall(r"^(diptych_\w+)(?:\{.*\})? (\S+)$", text, re.MULTILINE):
            found[name] += float(value)  # type: ignore[assignment]
        return dict(found)


def wrong(hostile: Hostile, answers: Sequence[Answer]) -> list[str]:
    """Return what is wrong with the answers themselves: a 5xx, none at all, an error of another shape or name."""
    found = []
    for answer in answers:
        status = answer.status
        if status is None or (status == 0 and hostile.broken and not answer.trouble.startswith("no whole")):
            continue
        error = answer.error()
        if status == 0:
            found.append(answer.trouble or "no reply")
        elif status >= 500 and not (status == 503 and error and (hostile.late or error["code"] == UNREAD)):
            found.append(f"status {status}")
        elif status >= 400 and error is None and answer.body:
            found.append("an error of another shape")
        elif status < 400 and hostile.refused:
            found.append("it was not refused")
        elif error is not None and hostile.param and not str(error["param"]).startswith(hostile.param):
            found.append(f"{error['param']} was named and not {hostile.param}")
    return list(dict.fromkeys(found))


def line(row: Row) -> str:
    """Return its line of the table."""
    verdict = "FAULT" if row.faults else "ok"
    note = f"  {'; '.join(row.faults)}" if row.faults else ""
    left = row.left or "-"
    return (
        f"{verdict:<6} {row.kind:<18} {row.name[:50]:<50} {row.statuses[:20]:<20} {row.took:>5.1f} "
        f"{1000 * row.health:>6.0f} {1000 * max(0.0, row.later):>6.0f} {row.memory:>5.0f} {row.replica:>7.0f}  "
        f"{left}{note}"
    )


def _counted(answers: Sequence[Answer]) -> str:
    names = {None: "left", 0: "none"}
    counts = Counter(names.get(one.status, str(one.status)) for one in answers)
    return ", ".join(f"{count} x {name}" for name, count in sorted(counts.items()))


def _fetched(url: str) -> str:
    with urllib.request.urlopen(url, timeout=60) as reply:
        return str(reply.read().decode())


def _processor() -> str:
    found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else "an unknown processor"


if __name__ == "__main__":
    sys.exit(main())
