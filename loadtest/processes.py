"""CPU seconds, memory and other counts of a server's processes, by role. And holding them still."""

import contextlib
import re
from collections import defaultdict
from collections.abc import Callable

import psutil

from serve.engines.vllm.process_tree import cpu_seconds, descendants

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
        return [line for process in self.all() if (line := command_line(process))]

    def cpu(self) -> dict[str, float]:
        """CPU seconds since each process began, by role; those of children that have ended are their parent's."""
        return self._by_role(lambda process: cpu_seconds(process.pid, ended_children=True))

    def memory(self) -> dict[str, float]:
        """Proportional set size in MiB, by role."""
        return self._by_role(lambda process: process.memory_full_info().pss / 2**20)

    def descriptors(self) -> dict[str, float]:
        """Open file descriptors, by role."""
        return self._by_role(lambda process: process.num_fds())

    def threads(self) -> dict[str, float]:
        """Threads, by role."""
        return self._by_role(lambda process: process.num_threads())

    def hold(self, still: bool) -> None:
        """Stop every process where it stands, or let all go on: servers that are not measured take no CPU then."""
        for number in self.all():
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(number)
                process.suspend() if still else process.resume()

    def _by_role(self, measure: Callable[[psutil.Process], float]) -> dict[str, float]:
        total: defaultdict[str, float] = defaultdict(float)
        for number in self.all():
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(number)
                total[self._role(process)] += measure(process)
        return dict(total)

    def _role(self, process: psutil.Process) -> str:
        line = command_line(process.pid)
        if "ServeReplica" in line and "ServeReplica" in command_line(process.ppid()):
            return "engine"  # Diptych forks it from the replica, whose name it keeps
        return next((role for role, pattern in ROLES if pattern.search(line)), self.front)


def command_line(process: int) -> str:
    """Its words with blanks between them; empty where it has ended."""
    with contextlib.suppress(psutil.Error):
        return " ".join(psutil.Process(process).cmdline()).strip()
    return ""
