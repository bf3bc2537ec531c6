"""CPU, memory and other counts of a server's processes, by role of process, and stopping them where they stand."""

import contextlib
import os
import re
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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
NAMES = re.compile(r"ray::ServeReplica:[^:]*:(\S+)|ray::(ServeController)|(?:\S*/)?(gcs_server|raylet)(?:\s|$)")
MEDIA = "serve.media.decoder_process"
EVERY_S = 0.1


class Tree:
    """A process and all its descendants. front: the role of those that have no other."""

    def __init__(self, root: int, front: str) -> None:
        self.root = root
        self.front = front

    def all(self) -> list[int]:
        return descendants([self.root])

    def process(self, name: str) -> int:
        """Return the process of a model's replica, "gateway", "ServeController" or "gcs_server". Raises LookupError."""
        for process in self.all():
            match = NAMES.match(command_line(process))
            if match and name in match.groups():
                return process
        raise LookupError(name)

    def command_lines(self) -> list[str]:
        return [line for process in self.all() if (line := command_line(process))]

    def cpu(self) -> dict[str, float]:
        """Return CPU seconds since each process began; those of children that have ended count as their parent's."""
        return self._by_role(lambda process: cpu_seconds(process.pid, ended_children=True))

    def memory(self) -> dict[str, float]:
        """Return the proportional set size in MiB."""
        return self._by_role(lambda process: process.memory_full_info().pss / 2**20)

    def descriptors(self) -> dict[str, float]:
        """Return the number of open file descriptors."""
        return self._by_role(lambda process: process.num_fds())

    def threads(self) -> dict[str, float]:
        """Return the number of threads."""
        return self._by_role(lambda process: process.num_threads())

    def hold(self, still: bool) -> None:
        """Stop every process where it stands, or let all go on."""
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
    """Return the command line, its words with blanks between them; empty for a process that has ended."""
    with contextlib.suppress(psutil.Error):
        return " ".join(psutil.Process(process).cmdline()).strip()
    return ""


def processor() -> str:
    """Return the processor's name, the number of cores and the vector instructions that it has."""
    lines = Path("/proc/cpuinfo").read_text()
    name = re.search(r"^model name\s*: (.+)$", lines, re.MULTILINE)
    flags = re.search(r"^flags\s*: (.+)$", lines, re.MULTILINE)
    have = set(flags[1].split()) if flags else set()
    vectors = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_tile") if flag in have]
    return ", ".join([name[1] if name else "an unknown processor", f"{os.cpu_count()} cores", *vectors])


@dataclass(frozen=True)
class Memory:
    """Bytes of the gateway with all media processes, shared memory too, and of the replica that holds most."""

    gateway: int
    replica: int


class MemoryWatch:
    """Reads the memory of the server at a port of this machine, in a thread, and keeps the highest of each number.

    Raises LookupError where nothing listens at the port.
    """

    def __init__(self, port: int) -> None:
        self._gateway = _listener(port)
        self._root = _parent(self._gateway)
        self.highest = Memory(0, 0)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._repeat, daemon=True)
        self._thread.start()

    def decoding(self) -> list[int]:
        """Return the media processes at work on a file, of the gateway and of the replicas: children of others."""
        media = [process for process in descendants([self._root]) if MEDIA in command_line(process)]
        return [process for process in media if _parent(process) in media]

    def now(self) -> Memory:
        """Read the memory once."""
        lines = {process: command_line(process) for process in descendants([self._root])}
        media = [process for process, line in lines.items() if MEDIA in line]
        replicas = [p for p, line in lines.items() if line.startswith("ray::ServeReplica:") and MEDIA not in line]
        private = {process: _private(process) for process in {self._gateway, *replicas}}
        gateway, files = private.pop(self._gateway), _memory_files(self._gateway)
        for process in media:
            gateway += _proportional(process)
            files |= _memory_files(process)
        return Memory(gateway + sum(files.values()), max(private.values(), default=0))

    def look(self) -> None:
        """Read the memory once and keep what is higher."""
        now, before = self.now(), self.highest
        self.highest = Memory(max(now.gateway, before.gateway), max(now.replica, before.replica))

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        self._thread.join()

    def _repeat(self) -> None:
        while not self._closed.wait(EVERY_S):
            self.look()


def _private(process: int) -> int:
    """Return the bytes that are the process's own. The kernel has them at hand: the process is not held up."""
    with contextlib.suppress(psutil.Error):
        memory = psutil.Process(process).memory_info()
        return int(memory.rss - memory.shared)
    return 0


def _proportional(process: int) -> int:
    """Return the bytes of private pages, those shared since a fork by their part. psutil does not tell them apart."""
    with contextlib.suppress(OSError, LookupError):
        lines = Path(f"/proc/{process}/smaps_rollup").read_text()
        return 1024 * int(lines.partition("\nPss_Anon:")[2].split()[0])
    return 0


def _memory_files(process: int) -> dict[int, int]:
    """Return the bytes in each memory file that the process holds open, by inode: they need not be mapped anywhere."""
    sizes = {}
    with contextlib.suppress(OSError):
        for file in Path(f"/proc/{process}/fd").iterdir():
            with contextlib.suppress(OSError):
                if os.readlink(file).startswith("/memfd:"):
                    status = file.stat()
                    sizes[status.st_ino] = 512 * status.st_blocks
    return sizes


def _listener(port: int) -> int:
    """Return the process that listens at the port. Raises LookupError."""
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
            return int(connection.pid)
    raise LookupError(f"No process of this machine is seen to listen at port {port}.")


def _parent(process: int) -> int:
    with contextlib.suppress(psutil.Error):
        return int(psutil.Process(process).ppid())
    return 0
