"""A memory budget for everything that a process and its decoder processes hold for requests."""

import asyncio
import contextlib
import ctypes
import itertools
import os
from collections import deque
from pathlib import Path

from serve.errors import Overloaded, TooLarge

SMALL = 2 * 2**20
"""Bytes up to which a lease is small: it never waits behind larger ones."""
MOST_WAITING = 256
"""Waiters of each kind; further ones are refused at once."""
CONTAINER_SHARE = 0.6
"""Share of a container's memory. The rest is for the process itself, its idle decoder processes and Ray."""
MACHINE_SHARE = 1 / 8
"""Share of a machine's memory where no container limit is set, since models run beside the gateway there."""
MACHINE_LEAST = 2**30
REPLICA_SHARE = 1 / 16
"""Share of the container's or machine's memory for a model's process: a pod of 12 GiB holds up to eight toys of 0.9
GB."""
REPLICA_LEAST = 768 * 2**20
"""Enough for the largest image."""

M_MMAP_THRESHOLD = -3
LARGE_BLOCK = 2**20

# The part of the budget up to which a lease is given, by (arriving, small). The last tenth is for small leases, so that
# large images cannot keep them out.
_CEILINGS = {(True, False): 0.9, (True, True): 0.95, (False, False): 0.9, (False, True): 1.0}
# The part of the budget that arriving leases may fill, by small: each of these requests needs more memory, to be parsed
# and decoded, before it can end, and would otherwise wait for it until its deadline.
_ARRIVED = {False: 0.4, True: 0.5}


class Lease:
    """A lease on bytes of a Budget, and a context manager that releases it. For use on the event loop only.

    size: bytes. arrived: the part of them that was acquired with `arriving`.
    """

    def __init__(self, budget: "Budget") -> None:
        self._budget = budget
        self._released = False
        self.size = self.arrived = 0

    async def grow(
        self, size: int, deadline: float | None = None, param: str | None = None, *, arriving: bool = False
    ) -> None:
        """Grow the lease to `size` bytes in total, as `Budget.acquire` does.

        Where that is refused, it stays as it is.
        """
        if not self._released and size > self.size:
            await self._budget._give(self, size, deadline, param, arriving)

    def shrink(self, size: int) -> None:
        """Shrink the lease to `size` bytes in total."""
        if size < self.size:
            less, gone = self.size - size, max(0, self.arrived - size)
            self.size, self.arrived = size, self.arrived - gone
            self._budget._take_back(less, gone)

    def release(self) -> None:
        """Release all bytes. Calling it again does nothing."""
        self._released = True
        self.shrink(0)

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class _Waiter:
    """A lease that waits to grow to `size` bytes."""

    def __init__(self, lease: Lease, size: int) -> None:
        self.lease, self.size = lease, size
        self.granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Budget:
    """A budget of `total` bytes that gives leases, first come, first served among leases of one kind.

    For use on the event loop only. held: bytes leased now.
    """

    def __init__(self, total: int) -> None:
        self.total, self.held, self._arrived, self._refused = total, 0, 0, 0
        kinds = itertools.product((False, True), (True, False))  # decoding before arriving bytes, small before large
        self._waiting: dict[tuple[bool, bool], deque[_Waiter]] = {kind: deque() for kind in kinds}

    @classmethod
    def of_this_process(cls, megabytes: int | None = None) -> "Budget":
        """Return a budget of `megabytes`; by default a share of the container's memory limit, else of the machine's."""
        if megabytes is not None:
            return cls(megabytes * 2**20)
        limit, machine = container_limit(), machine_memory()
        if limit is not None and limit < machine:
            return cls(int(limit * CONTAINER_SHARE))
        return cls(max(MACHINE_LEAST, int(machine * MACHINE_SHARE)))

    @classmethod
    def of_replica(cls) -> "Budget":
        """Return a budget for one of several model processes that share a container or a machine."""
        memory = machine_memory()
        return cls(max(REPLICA_LEAST, int(min(container_limit() or memory, memory) * REPLICA_SHARE)))

    async def acquire(
        self, size: int, deadline: float | None = None, param: str | None = None, *, arriving: bool = False
    ) -> Lease:
        """Return a lease of `size` bytes once they are free.

        deadline: a time of the event loop; None waits without limit. arriving: for request bodies and fetched files,
        which need more memory later, to be parsed and decoded; such leases may fill only a part of the budget.
        Raises Overloaded at the deadline or where too many wait already, TooLarge where `size` can never fit.
        """
        lease = Lease(self)
        await self._give(lease, size, deadline, param, arriving)
        return lease

    def resize(self, total: int) -> None:
        """Change the total. Leases that were given stay."""
        self.total = total
        self._serve()

    def refusals(self) -> int:
        """Return the number of leases refused since the last call."""
        count, self._refused = self._refused, 0
        return count

    def largest(self, *, arriving: bool = False) -> int:
        """Return the bytes of the largest lease that can be given."""
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
                self._serve()  # the next waiter may need less
            else:  # it was granted in the same turn of the loop in which the wait ended
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


def release_large_blocks() -> None:
    """Make glibc return large blocks to the system as soon as they are freed.

    By default glibc raises the size from which it does so with each freed block, up to 32 MB. Bodies that grow side by
    side then leave holes: 450 MB of them took 600 MB and left 220 MB behind.
    """
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)


def container_limit(cgroups: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the lowest memory limit in bytes of this process's control group (version 1 or 2) and its parents.

    None where there is no limit.
    """
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
    """Return the bytes of memory in this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _limits(root: Path, path: str, name: str) -> list[int]:
    """Return the limits in the files `name` of the control group at `path` and of all its parents."""
    group = root / path.lstrip("/")
    texts = []
    for folder in (group, *group.parents):  # a container without its own namespace sees a path that is not mounted
        if folder == root or root in folder.parents:
            try:
                texts.append((folder / name).read_text().strip())
            except OSError:
                continue
    return [int(text) for text in texts if text.isdecimal()]
