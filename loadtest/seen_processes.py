"""What a server's gateway, media processes and replicas hold in memory, found by its port and read from /proc."""

import contextlib
import os
import threading
from dataclasses import dataclass
from pathlib import Path

from serve.engines.process_tree import descendants

MEDIA = "serve.media.decoder"
"""What the command line of a media process names."""
REPLICA = "ray::ServeReplica:"
EVERY_S = 0.1
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Memory:
    """Bytes of the gateway with all media processes, shared memory too, and of the replica that holds most."""

    gateway: int
    replica: int


class Processes:
    """The processes of the server that listens at `port` of this machine. Raises LookupError where there is none."""

    def __init__(self, port: int) -> None:
        self.gateway = _listener(port)
        self._root = _parent(self.gateway)

    def decoding(self) -> list[int]:
        """Return the media processes at work on a file, of the gateway and of the replicas: children of others."""
        media = [process for process in descendants([self._root]) if MEDIA in _line(process)]
        return [process for process in media if _parent(process) in media]

    def memory(self) -> Memory:
        """Read them now."""
        family = descendants([self._root])
        media = [process for process in family if MEDIA in _line(process)]
        replicas = [one for one in family if _line(one).startswith(REPLICA) and one not in media]
        private = {one: _private(one) for one in {self.gateway, *replicas}}
        decoding, files = 0, _memory_files(self.gateway)
        for process in media:
            decoding += _proportional(process)
            files |= _memory_files(process)
        gateway = private.pop(self.gateway) + decoding + sum(files.values())
        return Memory(gateway, max(private.values(), default=0))


class Watch:
    """Reads the memory all the time, in a thread, and keeps the highest of each number since `reset`."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._over = threading.Event()
        self.highest = Memory(0, 0)
        self._thread = threading.Thread(target=self._repeat, daemon=True)
        self._thread.start()

    def reset(self) -> None:
        """Begin anew."""
        self.highest = Memory(0, 0)

    def close(self) -> None:
        """End the thread."""
        self._over.set()
        self._thread.join()

    def look(self) -> None:
        """Read it now."""
        now, before = self._processes.memory(), self.highest
        self.highest = Memory(max(now.gateway, before.gateway), max(now.replica, before.replica))

    def _repeat(self) -> None:
        while not self._over.wait(EVERY_S):
            self.look()


def _private(process: int) -> int:
    """Return the bytes that are the process's own. The kernel has them at hand: the process is not held up."""
    with contextlib.suppress(OSError):
        _, resident, shared, *_ = map(int, Path(f"/proc/{process}/statm").read_text().split())
        return (resident - shared) * PAGE
    return 0


def _proportional(process: int) -> int:
    """Return the same where processes share what they were forked with: pages of several count by their part."""
    with contextlib.suppress(OSError, LookupError):
        lines = Path(f"/proc/{process}/smaps_rollup").read_text()
        return 1024 * int(lines.partition("\nPss_Anon:")[2].split()[0])
    return 0


def _memory_files(process: int) -> dict[int, int]:
    """Return the bytes in each memory file that the process holds open, by inode: they need not be mapped anywhere."""
    found = {}
    folder = f"/proc/{process}/fd"
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            with contextlib.suppress(OSError):
                if os.readlink(f"{folder}/{name}").startswith("/memfd:"):
                    status = os.stat(f"{folder}/{name}")
                    found[status.st_ino] = 512 * status.st_blocks
    return found


def _listener(port: int) -> int:
    """Return the process that listens at the port."""
    sockets = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            part = line.split()
            if part[3] == "0A" and int(part[1].rpartition(":")[2], 16) == port:
                sockets.add(f"socket:[{part[9]}]")
    for process in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if any(os.readlink(f"/proc/{process}/fd/{fd}") in sockets for fd in os.listdir(f"/proc/{process}/fd")):
                return int(process)
    raise LookupError(f"No process of this machine is seen to listen at port {port}.")


def _parent(process: int) -> int:
    """Return the process that started it; 0 where it has ended."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def _line(process: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""
