"""What a server's processes use: CPU seconds and memory by role, from /proc. And holding them still."""

import contextlib
import os
import re
import signal
from collections import defaultdict
from pathlib import Path

from serve.engines.process_tree import cpu_seconds, descendants

ROLES = (  # the first that is found in the command line names the process
    ("engine", re.compile(r"EngineCore|VLLM::Worker|VllmWorker")),
    ("media", re.compile(r"serve\.media\.decoder")),
    ("gateway", re.compile(r"ServeReplica:[^:]*:(gateway|OpenAiIngress)")),
    ("replica", re.compile(r"ServeReplica:")),
    ("proxy", re.compile(r"ProxyActor|haproxy")),
    ("controller", re.compile(r"ServeController")),
    ("ray", re.compile(r"ray::|gcs_server|raylet|/ray/|ray/_private|multiprocessing.resource_tracker")),
)


class Tree:
    """A process and everything that comes from it. front: what to call whatever has no other role."""

    def __init__(self, root: int, front: str) -> None:
        self.root = root
        self.front = front

    def all(self) -> list[int]:
        return descendants([self.root])

    def lines(self) -> list[str]:
        """Every process's command line."""
        found = []
        for process in self.all():
            with contextlib.suppress(OSError):
                found.append(_line(process))
        return found

    def cpu(self) -> dict[str, float]:
        """CPU seconds since each process began, by role; those of children that have ended are their parent's."""
        spent: defaultdict[str, float] = defaultdict(float)
        for process in self.all():
            with contextlib.suppress(OSError):
                spent[self._role(process)] += cpu_seconds(process, ended_children=True)
        return dict(spent)

    def memory(self) -> dict[str, float]:
        """Proportional set size in MiB, by role."""
        held: defaultdict[str, float] = defaultdict(float)
        for process in self.all():
            with contextlib.suppress(OSError, IndexError):
                lines = Path(f"/proc/{process}/smaps_rollup").read_text()
                held[self._role(process)] += int(lines.partition("\nPss:")[2].split()[0]) / 1024
        return dict(held)

    def count(self, what: str) -> dict[str, int]:
        """Entries of /proc/PID/`what`, "fd" or "task", by role."""
        found: defaultdict[str, int] = defaultdict(int)
        for process in self.all():
            with contextlib.suppress(OSError):
                found[self._role(process)] += len(os.listdir(f"/proc/{process}/{what}"))
        return dict(found)

    def hold(self, still: bool) -> None:
        """Stop every process where it stands, or let all go on: servers that are not measured take no CPU then."""
        for process in self.all():
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGSTOP if still else signal.SIGCONT)

    def _role(self, process: int) -> str:
        line = _line(process)
        if "ServeReplica" in line and "ServeReplica" in _line(_parent(process)):
            return "engine"  # Diptych forks it from the replica, whose name it keeps
        return next((role for role, pattern in ROLES if pattern.search(line)), self.front)


def _line(process: int) -> str:
    return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")


def _parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
