"""What a server's gateway, media processes and replicas hold in memory, found by its port and read from /proc."""

import contextlib
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from serve.engines.process_tree import descendants

MEDIA = "serve.media.decoder"
"""What the command line of a media process names."""
REPLICA = "ray::ServeReplica:"
EVERY_S = 0.1


@dataclass(frozen=True)
class Memory:
    """Bytes of the gateway with all media processes, and of the replica that holds most, as the kernel counts them."""

    gateway: int
    replica: int


class Processes:
    """The processes of the server that listens at `port` of this machine. Raises LookupError where there is none."""

    def __init__(self, port: int) -> None:
        self.gateway = _listener(port)
        self._root = _parent(self.gateway)

    def media(self) -> list[int]:
        """Return the media processes, of the gateway and of the replicas."""
        return [process for process in descendants([self._root]) if MEDIA in _line(process)]

    def memory(self) -> Memory:
        """Read them now."""
        family = descendants([self._root])
        media = {process for process in family if MEDIA in _line(process)}
        replicas = [
            one for one in family if _line(one).startswith(REPLICA) and one not in media and one != self.gateway
        ]
        return Memory(held([self.gateway, *media]), max((held([one]) for one in replicas), default=0))


class Watch:
    """Reads the memory all the time, in a thread, and keeps the highest of each number since `reset`."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._over = threading.Event()
        self.highest = Memory(0, 0)
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def reset(self) -> None:
        """Begin anew."""
        self.highest = Memory(0, 0)

    def close(self) -> None:
        """End the thread."""
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(EVERY_S):
            now, before = self._processes.memory(), self.highest
            self.highest = Memory(max(now.gateway, before.gateway), max(now.replica, before.replica))


def held(processes: Iterable[int]) -> int:
    """Return the bytes that these processes hold: pages shared with others by their part, memory files whole, once."""
    private = shared = 0
    files: dict[int, int] = {}
    for process in processes:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in ("Pss_Anon", "Pss_File"):
                    private += 1024 * int(value.split()[0])
                elif name == "Pss_Shmem":
                    shared += 1024 * int(value.split()[0])
        files |= _memory_files(process)
    return private + max(shared, sum(files.values()))


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
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def _line(process: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""
