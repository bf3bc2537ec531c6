"""Processes and what comes from them, by the kernel's own lists (Linux)."""

import contextlib
import os
from collections.abc import Container, Iterable
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


def descendants(roots: Iterable[int], without: Container[int] = ()) -> list[int]:
    """The processes and all that come from them; those in `without`, and theirs, left out."""
    found = list(roots)
    for process in found:
        for children in Path(f"/proc/{process}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found.extend(child for child in map(int, children.read_text().split()) if child not in without)
    return found


def states(process: int) -> list[str]:
    """A letter for each of its threads, as in proc(5): R runs or waits for a processor, S waits for something else."""
    found = []
    for stat in Path(f"/proc/{process}/task").glob("*/stat"):
        with contextlib.suppress(OSError):
            found.append(stat.read_text().rpartition(")")[2].split()[0])
    return found


def cpu_seconds(process: int, *, ended_children: bool = False) -> float:
    """Return the CPU seconds that its threads have used so far; 0 for a process that is gone.

    ended_children: add those of its children that have ended and were waited for.
    """
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11 : 15 if ended_children else 13])) / TICK
