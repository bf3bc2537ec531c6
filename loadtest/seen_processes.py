"""What a server's gateway, media processes and replicas hold in memory, found by its port."""

import contextlib
import os
import threading
from dataclasses import dataclass
from pathlib import Path

import psutil

from loadtest.processes import command_line
from serve.engines.vllm.process_tree import descendants

MEDIA = "serve.media.decoder_process"
"""What the command line of a media process names."""
REPLICA = "ray::ServeReplica:"
EVERY_S = 0.1


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
        media = [process for process in descendants([self._root]) if MEDIA in command_line(process)]
        return [process for process in media if _parent(process) in media]

    def memory(self) -> Memory:
        """Read them now."""
        family = descendants([self._root])
        lines = {process: command_line(process) for process in family}
        media = [process for process, line in lines.items() if MEDIA in line]
        replicas = [process for process, line in lines.items() if line.startswith(REPLICA) and MEDIA not in line]
        private = {process: _private(process) for process in {self.gateway, *replicas}}
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
    with contextlib.suppress(psutil.Error):
        memory = psutil.Process(process).memory_info()
        return int(memory.rss - memory.shared)
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
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
            return int(connection.pid)
    raise LookupError(f"No process of this machine is seen to listen at port {port}.")


def _parent(process: int) -> int:
    """Return the process that started it; 0 where it has ended."""
    with contextlib.suppress(psutil.Error):
        return int(psutil.Process(process).ppid())
    return 0
