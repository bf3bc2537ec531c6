"""Faults done to a running Diptych under load, and what its clients saw of them: `make chaos`.

Simulated models behind the real gateway, replicas and Ray, started as `diptych serve` starts them. Judged by the ledger
of the clients and by /proc, not by what the server says of itself. NOTES.md says what was found.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import uvloop

from loadtest.faults import ELSEWHERE, FAULTS, Row
from loadtest.sides import Refused
from loadtest.world import World, world
from serve.loop_lag import freeze_heap


def main() -> int:
    """0: every line held; 1: one was missed; 2: it did not start."""
    parser = argparse.ArgumentParser("chaos", description=__doc__)
    parser.add_argument("--only", help="scenarios, as F1,F12")
    parser.add_argument("--out", default="build/chaos")
    options = parser.parse_args()
    only = options.only.split(",") if options.only else []
    wanted = [name for name in FAULTS if not only or set(only) & set(name.split(", "))]
    try:
        with world() as running:
            freeze_heap()  # or the clients' own collections would count as the server's time
            rows = uvloop.run(_all(running, wanted))
    except Refused as refused:
        print(f"chaos: {refused}", file=sys.stderr)
        return 2
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "chaos.json").write_text(json.dumps({name: asdict(row) for name, row in rows.items()}, indent=1))
    if not only:
        print("\nNot in this run:")
        for name, where in ELSEWHERE.items():
            print(f"  {name:<9} {where}")
    missed = [name for name, row in rows.items() if not row.met]
    print(f"\n{len(rows) - len(missed)} of {len(rows)} lines held. {out / 'chaos.json'}")
    return 1 if missed else 0


async def _all(running: World, wanted: list[str]) -> dict[str, Row]:
    print(f"{'':<9} {'requests':>8} {'failed':>6} {'hung':>4} {'detect':>6} {'back':>6} {'orphans':>7} {'MB':>5}")
    rows = {}
    for name in wanted:
        rows[name] = row = await FAULTS[name](running)
        what, _, line = " ".join((FAULTS[name].__doc__ or "").split()).partition(" | ")
        held = "met   " if row.met else "MISSED"
        print(
            f"{name:<9} {row.requests:>8} {row.failed:>6} {row.hung:>4} {_seconds(row.detect):>6} "
            f"{_seconds(row.recover):>6} {row.orphans:>7} {running.memory():>5.0f}  {held}  "
            f"{what}: {line}" + (f" [{row.note}]" if row.note else ""),
            flush=True,
        )
    return rows


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


if __name__ == "__main__":
    sys.exit(main())
