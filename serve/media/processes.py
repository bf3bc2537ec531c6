"""The way to the process that decodes files: one child of its own for each file, with limits on time and memory.

`serve.media.decoder` is the other side. Everything that blocks is done in threads of this module's own, which do
nothing else and parse nothing.
"""

import asyncio
import atexit
import contextlib
import heapq
import itertools
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from serve.errors import Overloaded, Unavailable
from serve.media.outline import Refused

log = logging.getLogger(__name__)

MESSAGE = 2**16
PRECEDENCE = 10.0
"""A file waits behind those that came up to so many times its own expected seconds later, and expect to take less."""
LARGE_S = 0.5
"""Expected seconds from which on a file may not take the last seat."""
FILMS_AT_ONCE, FILMS_WAITING = 2, 8
TRIES = 2
"""How often a file is decoded whose process was lost, by no fault of its own that we know of."""

THREADS = ThreadPoolExecutor(2, "media")
"""Copies files to the other process, and digests them: work of milliseconds that lets go of the interpreter."""


@dataclass(frozen=True)
class Job:
    """What is to be done, and what it may take. kind: image, or a film's as `video_caps.sniff` tells it; cpu_s: seconds
    of processor time; memory: bytes of address space beyond the process's own; output: bytes of pixels; nicer: how much
    lower its priority is than a picture's; caps: a film's."""

    kind: str
    cpu_s: int
    memory: int
    output: int
    nicer: int = 0
    caps: dict[str, Any] | None = None


class Lost(Exception):
    """The process ended without a reply, by nothing that its limits explain."""


class Zygote:
    """The process that forks, started when it is first needed. Its methods block, and may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Have it running, so that the first file need not wait for that. Raises OSError."""
        with self._lock:
            self._ready()

    def submit(self, job: Job, data: bytes) -> socket.socket:
        """Hand over a file. Returns the job's socket: its reply comes there, and closing it ends the job.

        Raises OSError where no process can be started.
        """
        file = _memfd(data)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs, self._lock:
                order = [json.dumps(asdict(job)).encode()]
                try:
                    socket.send_fds(self._ready(), order, [file, theirs.fileno()])
                except OSError:  # it has died since it was last used
                    self._end()
                    socket.send_fds(self._ready(), order, [file, theirs.fileno()])
            return ours
        except BaseException:
            ours.close()
            raise
        finally:
            os.close(file)

    def close(self) -> None:
        """End the process and all its children."""
        with self._lock:
            self._end()

    def forget(self) -> None:
        """In a forked process: leave it to the one that started it."""
        self._lock = threading.Lock()
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            self._process.returncode = 0  # not ours to wait for
        self._process = self._control = None

    def _ready(self) -> socket.socket:
        if self._process is not None and self._process.poll() is not None:
            log.warning("the media process ended (%s); another one is started", self._process.returncode)
            self._end()
        if self._control is None:
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._control.settimeout(5)
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "serve.media.decoder", str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    env=_environment(),
                    pass_fds=[theirs.fileno()],
                    process_group=0,
                )
        return self._control

    def _end(self) -> None:
        control, process = self._control, self._process
        self._control = self._process = None
        if control is not None:
            control.close()
        if process is not None:
            try:
                process.wait(1)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


ZYGOTE = Zygote()
atexit.register(ZYGOTE.close)
os.register_at_fork(after_in_child=ZYGOTE.forget)


def warm() -> None:
    """Have the process started by a thread, so that the first file need not wait for that."""
    THREADS.submit(ZYGOTE.start)


def _environment() -> dict[str, str]:
    """Return what it takes to find Python's packages and ours, and no secrets.

    One arena: more would be address space unused. Huge pages, and no mapping of its own for a decoder's block: a child
    touches each page for the first time, which was 40 % of its time at 12 megapixels.
    """
    paths = [str(Path(__file__).parents[2]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "OPENBLAS_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "1",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=67108864",
    }


def _memfd(data: bytes) -> int:
    file = os.memfd_create("file", os.MFD_CLOEXEC)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(file, view) :]
    except BaseException:
        os.close(file)
        raise
    return file


async def run(job: Job, data: bytes) -> tuple[dict[str, Any], int]:
    """Have a file decoded. Returns the reply and a memfd of its pixels, which the caller closes.

    Cancelling ends the job's process at once. Raises Refused, or Unavailable where no process can do it.
    """
    for _ in range(TRIES):
        try:
            return await _once(job, data)
        except Lost:
            log.warning("a media process was lost while it decoded")
        except OSError as error:
            log.error("no media process can be started: %s", error.strerror)
    raise Unavailable("The file could not be decoded just now.", code="unavailable")


def run_blocking(job: Job, data: bytes, within_s: float) -> tuple[dict[str, Any], int]:
    """`run` for a thread that may wait. Raises TimeoutError besides."""
    with ZYGOTE.submit(job, data) as replies:
        replies.settimeout(within_s)
        return _told(replies)


async def _once(job: Job, data: bytes) -> tuple[dict[str, Any], int]:
    submitted = THREADS.submit(ZYGOTE.submit, job, data)
    try:
        replies = await asyncio.wrap_future(submitted)
    except asyncio.CancelledError:
        submitted.add_done_callback(_close)
        raise
    with replies:
        replies.setblocking(False)
        loop = asyncio.get_running_loop()
        readable: asyncio.Future[None] = loop.create_future()
        loop.add_reader(replies, _wake, readable)
        try:
            await readable
        finally:
            loop.remove_reader(replies)
        return _told(replies)


def _wake(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)


def _close(submitted: "Future[socket.socket]") -> None:
    if not submitted.cancelled() and submitted.exception() is None:
        submitted.result().close()


def _told(replies: socket.socket) -> tuple[dict[str, Any], int]:
    """The reply that has come. Raises Refused, or Lost."""
    message, fds, _, _ = socket.recv_fds(replies, MESSAGE, 1)
    said: dict[str, Any] = json.loads(message) if message else {}
    if fds and "refused" not in said:
        return said, fds[0]
    for fd in fds:
        os.close(fd)
    if "refused" in said:
        raise Refused(said["refused"], said["size"] and tuple(said["size"]))
    if "failed" in said:  # what a decoder raises of a file that nobody thought of
        log.error("a media process failed: %s", said["failed"])
        raise Refused("damaged")
    if "ended" not in said:
        raise Lost
    number = os.WTERMSIG(said["ended"]) if os.WIFSIGNALED(said["ended"]) else 0
    if number == signal.SIGXCPU:
        raise Refused("slow")
    if number == signal.SIGKILL:  # by whoever was short of memory
        raise Lost
    log.warning("a media process was ended by signal %d", number)
    raise Refused("damaged")


class Seats:
    """So many files at once, those that expect to take little first. Large ones never take the last seat."""

    def __init__(self, count: int) -> None:
        self.free = count
        self.free_to_large = max(1, count - 1)
        self._numbers = itertools.count()
        self._waiting: dict[bool, list[tuple[float, int, asyncio.Future[None]]]] = {False: [], True: []}

    @asynccontextmanager
    async def take(self, cost_s: float, deadline: float | None, param: str) -> AsyncIterator[None]:
        """A seat for as long as this lasts. deadline: a time of the event loop. Raises Overloaded when it passes."""
        large = cost_s >= LARGE_S
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        heapq.heappush(self._waiting[large], (loop.time() + PRECEDENCE * cost_s, next(self._numbers), turn))
        self._serve()
        try:
            async with asyncio.timeout_at(deadline):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self._leave(large)
            else:
                self._waiting[large] = [entry for entry in self._waiting[large] if entry[2] is not turn]
                heapq.heapify(self._waiting[large])
            if isinstance(error, TimeoutError):
                raise Overloaded("Too many large files are being decoded: try again later.", param=param) from None
            raise
        try:
            yield
        finally:
            self._leave(large)

    def _leave(self, large: bool) -> None:
        self.free += 1
        self.free_to_large += large
        self._serve()

    def _serve(self) -> None:
        while self.free:
            able = [large for large in (False, True) if self._waiting[large] and (self.free_to_large or not large)]
            if not able:
                return
            large = min(able, key=lambda kind: self._waiting[kind][0])
            _, _, turn = heapq.heappop(self._waiting[large])
            if not turn.done():
                self.free -= 1
                self.free_to_large -= large
                turn.set_result(None)


class Queue:
    """So many at once in the order they come, and so many that wait; for the films of one event loop."""

    def __init__(self, at_once: int, waiting: int) -> None:
        self._seats = asyncio.Semaphore(at_once)
        self._most, self._present = at_once + waiting, 0

    @asynccontextmanager
    async def take(self, deadline: float | None, param: str) -> AsyncIterator[None]:
        """Raises Overloaded at once where the queue is full, else when the deadline passes."""
        full = Overloaded("Too many videos are being decoded: try again later.", param=param)
        if self._present >= self._most:
            raise full
        self._present += 1
        try:
            try:
                async with asyncio.timeout_at(deadline):
                    await self._seats.acquire()
            except TimeoutError:
                raise full from None
            try:
                yield
            finally:
                self._seats.release()
        finally:
            self._present -= 1


@dataclass(frozen=True)
class Lanes:
    """Who may decode when, in one event loop."""

    pictures: Seats
    films: Queue


_LANES: "weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Lanes]" = weakref.WeakKeyDictionary()


def lanes() -> Lanes:
    """Those of the running event loop."""
    loop = asyncio.get_running_loop()
    if loop not in _LANES:
        _LANES[loop] = Lanes(Seats(min(4, max(2, processors()))), Queue(FILMS_AT_ONCE, FILMS_WAITING))
    return _LANES[loop]


def processors(group: Path = Path("/sys/fs/cgroup")) -> int:
    """How many processors this process may use, rounded up: by its affinity and by its container's quota."""
    count = len(os.sched_getaffinity(0))
    readings: tuple[tuple[str, Callable[[], list[str]]], ...] = (
        ("version 2", lambda: (group / "cpu.max").read_text().split()),
        (
            "version 1",
            lambda: [(group / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")],
        ),
    )
    for _, read in readings:
        with contextlib.suppress(OSError, ValueError):
            quota, period = map(int, read())
            if quota > 0:
                return max(1, min(count, -(-quota // period)))
    return count
