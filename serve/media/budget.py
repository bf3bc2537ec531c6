"""One number of bytes that everything held for requests counts against, in one process and its media processes."""

import asyncio
import contextlib
import ctypes
import itertools
import os
from collections import deque
from pathlib import Path

from serve.errors import Overloaded, TooLarge

SMALL = 2 * 2**20
"""A lease of at most so many bytes never waits behind larger ones."""
MOST_WAITING = 256
"""Waiters of one kind; more are refused at once."""
CONTAINER_SHARE = 0.6
"""Of a container's memory. The rest is for the process itself, its idle media processes and Ray's own."""
MACHINE_SHARE = 1 / 8
"""Of a machine without a container's limit: models run beside us there."""
MACHINE_LEAST = 2**30
REPLICA_SHARE = 1 / 16
"""Of the same for a model's process: up to eight toys stand in a pod of 12 GiB, each with 0.9 GB of its own."""
REPLICA_LEAST = 768 * 2**20
"""The largest picture fits."""

M_MMAP_THRESHOLD = -3
LARGE_BLOCK = 2**20

# Up to which part of the budget a lease may be given, by (arriving, small). The last tenth is for what is small, so
# that large pictures cannot keep small ones out.
_CEILINGS = {(True, False): 0.9, (True, True): 0.95, (False, False): 0.9, (False, True): 1.0}
# And which part of it may be what has arrived, by small: each request in it needs room to be parsed and decoded before
# it can end, and would wait for that until its deadline.
_ARRIVED = {False: 0.4, True: 0.5}


class Lease:
    """Bytes of a Budget that one holder may fill. A context manager that gives them back; for the event loop only."""

    def __init__(self, budget: "Budget") -> None:
        self._budget = budget
        self._released = False
        self.size = self.arrived = 0  # the second: of the first, what was given as arriving

    async def grow(
        self, size: int, deadline: float | None = None, param: str | None = None, *, arriving: bool = False
    ) -> None:
        """Have `size` bytes in all, as `Budget.acquire` gives them; what is held stays held where that is refused."""
        if not self._released and size > self.size:
            await self._budget._give(self, size, deadline, param, arriving)

    def shrink(self, size: int) -> None:
        """Keep only `size` bytes in all."""
        if size < self.size:
            less, gone = self.size - size, max(0, self.arrived - size)
            self.size, self.arrived = size, self.arrived - gone
            self._budget._take_back(less, gone)

    def release(self) -> None:
        """Give everything back; again is harmless."""
        self._released = True
        self.shrink(0)

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class _Waiter:
    """A lease that waits to hold `size` bytes in all."""

    def __init__(self, lease: Lease, size: int) -> None:
        self.lease, self.size = lease, size
        self.granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Budget:
    """Gives leases on `total` bytes, first come first served among leases of one kind; for the event loop only.

    held: bytes leased now.
    """

    def __init__(self, total: int) -> None:
        self.total, self.held, self._arrived, self._refused = total, 0, 0, 0
        kinds = itertools.product((False, True), (True, False))  # work before what arrives, small before large
        self._waiting: dict[tuple[bool, bool], deque[_Waiter]] = {kind: deque() for kind in kinds}

    @classmethod
    def of_this_process(cls, megabytes: int | None = None) -> "Budget":
        """A budget of `megabytes`, or of a share of what the container, else the machine, may use."""
        if megabytes is not None:
            return cls(megabytes * 2**20)
        limit, machine = container_limit(), machine_memory()
        if limit is not None and limit < machine:
            return cls(int(limit * CONTAINER_SHARE))
        return cls(max(MACHINE_LEAST, int(machine * MACHINE_SHARE)))

    @classmethod
    def of_one_of_many(cls) -> "Budget":
        """A budget for one of several processes that share a container or a machine, as a pod's models do."""
        memory = machine_memory()
        return cls(max(REPLICA_LEAST, int(min(container_limit() or memory, memory) * REPLICA_SHARE)))

    async def acquire(
        self, size: int, deadline: float | None = None, param: str | None = None, *, arriving: bool = False
    ) -> Lease:
        """A lease of `size` bytes, once they are free.

        deadline: a time of the event loop; None waits for ever. arriving: for bytes that are still on their way in and
        need more room before they can leave, such as bodies and fetched files; they may fill only a part of the budget.
        Raises Overloaded where the deadline passes or too many wait already, TooLarge where the bytes can never fit.
        """
        lease = Lease(self)
        await self._give(lease, size, deadline, param, arriving)
        return lease

    def resize(self, total: int) -> None:
        """Have another total from now on; what is leased stays leased."""
        self.total = total
        self._serve()

    def refusals(self) -> int:
        """Return how many leases were refused since this was last asked."""
        count, self._refused = self._refused, 0
        return count

    def largest(self, *, arriving: bool = False) -> int:
        """The largest lease that can ever be given."""
        return int(self.total * (_ARRIVED[False] if arriving else _CEILINGS[False, False]))

    async def _give(self, lease: Lease, size: int, deadline: float | None, param: str | None, arriving: bool) -> None:
        kind = arriving, size <= SMALL
        if size > self.total * (_ARRIVED[size <= SMALL] if arriving else _CEILINGS[kind]):
            self._refused += 1
            raise TooLarge("The request needs more memory than this server has for one.", param=param)
        queue = self._waiting[kind]
        if not queue and self._fits(size - lease.size, kind):
            self._grant(lease, size, arriving)
            return
        if len(queue) >= MOST_WAITING:
            raise self._overloaded(param)
        await self._wait(queue, _Waiter(lease, size), deadline, param)

    async def _wait(self, queue: deque[_Waiter], waiter: _Waiter, deadline: float | None, param: str | None) -> None:
        queue.append(waiter)
        before = waiter.lease.size
        try:
            async with asyncio.timeout_at(deadline):
                await waiter.granted
        except BaseException as error:
            if waiter in queue:
                queue.remove(waiter)
                self._serve()  # the next in line may be smaller
            else:  # it was granted in the very turn in which nobody waited any more
                waiter.lease.shrink(before)
            if isinstance(error, TimeoutError):
                raise self._overloaded(param) from None
            raise

    def _overloaded(self, param: str | None) -> Overloaded:
        self._refused += 1
        return Overloaded("The server holds as much as its memory allows: try again later.", param=param)

    def _fits(self, more: int, kind: tuple[bool, bool]) -> bool:
        arriving, small = kind
        if arriving and self._arrived + more > self.total * _ARRIVED[small]:
            return False
        return self.held + more <= self.total * _CEILINGS[kind]

    def _grant(self, lease: Lease, size: int, arriving: bool) -> None:
        more = size - lease.size
        lease.size = size
        self.held += more
        if arriving:
            lease.arrived += more
            self._arrived += more

    def _take_back(self, size: int, arrived: int) -> None:
        self.held -= size
        self._arrived -= arrived
        self._serve()

    def _serve(self) -> None:
        for kind, queue in self._waiting.items():
            while queue and self._fits(queue[0].size - queue[0].lease.size, kind):
                waiter = queue.popleft()
                self._grant(waiter.lease, waiter.size, arriving=kind[0])
                if not waiter.granted.done():
                    waiter.granted.set_result(None)


def give_back_large_blocks() -> None:
    """Have this process's allocator return large blocks to the system as soon as they are freed.

    glibc raises the size from which it does that with each block that is freed, up to 32 MB; bodies that grow side by
    side then leave holes, and 450 MB of them took 600 and left 220 behind.
    """
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)


def container_limit(cgroups: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> int | None:
    """The least memory limit in bytes of this process's control group and those above it, version 2 or 1; None where
    there is none."""
    try:
        lines = cgroups.read_text().splitlines()
    except OSError:
        return None
    limits = []
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            limits += _limits(mounted, path, "memory.max") + _limits(mounted / "unified", path, "memory.max")
        elif "memory" in controllers.split(","):
            limits += _limits(mounted / "memory", path, "memory.limit_in_bytes")
    return min(limits, default=None)


def machine_memory() -> int:
    """Bytes of memory in this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _limits(root: Path, path: str, name: str) -> list[int]:
    """The limits that `name` states in the group at `path` and in every group above it."""
    group = root / path.lstrip("/")
    texts = []
    for folder in (group, *group.parents):  # a container without its own namespace sees a path that is not mounted
        if folder == root or root in folder.parents:
            try:
                texts.append((folder / name).read_text().strip())
            except OSError:
                continue
    return [int(text) for text in texts if text.isdecimal()]
