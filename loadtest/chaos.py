"""Faults done to a running Diptych under load, and their effect on its clients: `make chaos`.

Simulated models behind the real gateway, replicas and Ray, started as `diptych serve` starts them. Judged by the
clients' ledger and by /proc, not by what the server reports of itself. NOTES.md has the results.
"""

import argparse
from dataclasses import asdict
from typing import Any

import uvloop

from loadtest.chaos_server import ChaosServer, chaos_server
from loadtest.faults import ELSEWHERE, FAULTS, Row
from loadtest.servers import NotAnswering
from serve.api.loop_lag import freeze_heap


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", default="", help="scenarios, as F1,F12")
    parser.set_defaults(out="build/chaos")


def run(options: argparse.Namespace) -> tuple[str, Any, bool]:
    """Do every fault. Met: every line held. Raises NotAnswering where --only names one that is not in the run."""
    only = set(filter(None, map(str.strip, options.only.split(","))))
    if unknown := only - {number for name in FAULTS for number in name.split(", ")}:
        raise NotAnswering(f"--only: {', '.join(sorted(unknown))} is not in the run; these are: {', '.join(FAULTS)}")
    wanted = [name for name in FAULTS if not only or only & set(name.split(", "))]
    with chaos_server() as server:
        freeze_heap()  # or the clients' own collections would count as the server's time
        rows = uvloop.run(_run(server, wanted))
    if not only:
        print("\nNot in this run:")
        for name, where in ELSEWHERE.items():
            print(f"  {name:<9} {where}")
    met = [row.met for row in rows.values()]
    print(f"\n{sum(met)} of {len(met)} lines held.")
    return "chaos", {name: asdict(row) for name, row in rows.items()}, all(met)


async def _run(server: ChaosServer, wanted: list[str]) -> dict[str, Row]:
    print(f"{'':<9} {'requests':>8} {'failed':>6} {'hung':>4} {'detect':>6} {'back':>6} {'orphans':>7} {'MB':>5}")
    rows = {}
    for name in wanted:
        rows[name] = row = await FAULTS[name](server)
        fault, _, line = " ".join((FAULTS[name].__doc__ or "").split()).partition(" | ")
        detect, recover = ("" if value is None else f"{value:.1f}" for value in (row.detect, row.recover))
        print(
            f"{name:<9} {row.requests:>8} {row.failed:>6} {row.hung:>4} {detect:>6} {recover:>6} {row.orphans:>7} "
            f"{server.memory():>5.0f}  {'met   ' if row.met else 'MISSED'}  {fault}: {line}"
            + (f" [{row.note}]" if row.note else ""),
            flush=True,
        )
    return rows
