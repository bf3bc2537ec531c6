"""Query processes: their descendants, their threads' states and their CPU time."""

import contextlib
from collections import defaultdict
from collections.abc import Container, Iterable
from pathlib import Path

import psutil


def descendants(roots: Iterable[int], without: Container[int] = ()) -> list[int]:
    """Return the pids of processes and their descendants, leaving out those in `without` and theirs."""
    children: defaultdict[int, list[int]] = defaultdict(list)
    for process in psutil.process_iter(["ppid"]):
        children[process.info["ppid"]].append(process.pid)
    family = list(roots)
    for parent in family:
        family.extend(child for child in children[parent] if child not in without)
    return family


def states(process: int) -> list[str]:
    """Return the state of each of a process's threads as in proc(5): R is running or runnable, S is sleeping.

    psutil has no states of threads.
    """
    letters = []
    for stat in Path(f"/proc/{process}/task").glob("*/stat"):
        with contextlib.suppress(OSError):
            letters.append(stat.read_text().rpartition(")")[2].split()[0])
    return letters


def cpu_seconds(process: int, *, ended_children: bool = False) -> float:
    """Return the CPU seconds that a process has used so far; 0 for one that has ended.

    ended_children: add those of its children that have ended and were waited for.
    """
    try:
        spent = psutil.Process(process).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    own = spent.user + spent.system
    return float(own + spent.children_user + spent.children_system if ended_children else own)
