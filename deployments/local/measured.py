"""Measures the memory of the engines that run on this machine: on a GPU by nvidia-smi, else of their processes."""

import re
from collections.abc import Iterable

import psutil

from deployments.local.gpus import MIB, query

REPLICA = re.compile(r"ray::ServeReplica:[^:]+:([^\s:]+)")


def measured(names: Iterable[str]) -> dict[str, int]:
    """Return the bytes that a replica of each model uses: of its GPU where it has one, else of main memory.

    Main memory is proportional (PSS): what several processes share counts in parts. Processes of others are not seen.
    """
    wanted = set(names)
    sizes: dict[str, int] = {}
    on_gpus = {
        int(pid): int(size) * MIB for pid, size in query("--query-compute-apps=pid,used_memory") if size.isdigit()
    }
    for process in psutil.process_iter():
        try:
            name = _replica(process)
            parent = process.parent()
            # a forked engine has its replica's title
            if name is None or name not in wanted or (parent is not None and _replica(parent) == name):
                continue
            tree = [process, *process.children(recursive=True)]
            used = sum(on_gpus.get(member.pid, 0) for member in tree)
            size = used or sum(member.memory_full_info().pss for member in tree)
            sizes[name] = max(size, sizes.get(name, 0))
        except psutil.Error:
            continue
    return sizes


def _replica(process: psutil.Process) -> str | None:
    """Return the model whose replica a process is, by the title that Ray gives it."""
    title = REPLICA.match(" ".join(process.cmdline()))
    return None if title is None else title.group(1)
