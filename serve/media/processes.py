"""Client of the decoder process: each file is decoded in a child of its own, with limits on time and memory.

The process itself is `serve.media.decoder_process`. Blocking calls run in threads of this module's own, which parse
nothing.
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
from serve.media.outline import RejectedFile

log = logging.getLogger(__name__)

MESSAGE = 2**16
PRECEDENCE = 10.0
"""A file waits behind smaller ones that came later, by up to this many times its own expected seconds."""
LARGE_S = 0.5
"""Expected seconds from which a file is large: it may not take the last free slot."""
VIDEOS_AT_ONCE, VIDEOS_WAITING = 2, 8
TRIES = 2
"""Attempts at a file whose process ends without a reply."""

THREADS = ThreadPoolExecutor(2, "media")
"""Threads that copy files to the decoder process and compute digests: milliseconds each, without the GIL."""


@dataclass(frozen=True)
class DecodeJob:
    """A file to decode, with its limits.

    kind: image, or a video's as `video_caps.sniff` returns it. cpu_s: seconds of processor time. memory: bytes of
    address space beside the process's own. output: bytes of pixels. nicer: added to the process's niceness. caps: a
    video's.
    """

    kind: str
    cpu_s: int
    memory: int
    output: int
    nicer: int = 0
    caps: dict[str, Any] | None = None


class ProcessLost(Exception):
    """A child ended without a reply, for no reason that its limits explain."""


class Zygote:
    """The decoder process, started when it is first needed. Methods block and are thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the process where it is not running. Raises OSError."""
        with self._lock:
            self._control_socket()

    def submit(self, job: DecodeJob, data: bytes) -> socket.socket:
        """Send a file to decode. Returns the job's socket, which receives the reply; closing it ends the job.

        Raises OSError where no process can be started.
        """
        file = _memfd(data)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs, self._lock:
                message = [json.dumps(asdict(job)).encode()]
                try:
                    socket.send_fds(self._control_socket(), message, [file, theirs.fileno()])
                except OSError:  # it has died since it was last used
                    self._end()
                    socket.send_fds(self._control_socket(), message, [file, theirs.fileno()])
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
        """Drop the process without ending it: for a fork of the process that started it."""
        self._lock = threading.Lock()
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            self._process.returncode = 0  # its parent waits for it
        self._process = self._control = None

    def _control_socket(self) -> socket.socket:
        if self._process is not None and self._process.poll() is not None:
            log.warning("the media process ended (%s); another one is started", self._process.returncode)
            self._end()
        if self._control is None:
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._control.settimeout(5)
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "serve.media.decoder_process", str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    env=child_environment(),
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
    """Start the decoder process in a thread, so that the first file does not wait for it."""
    THREADS.submit(ZYGOTE.start)


def child_environment() -> dict[str, str]:
    """Return the variables that Python needs to find its packages and ours, and no secrets.

    glibc gets one arena, since more would use up address space, and huge pages without a mapping for each large block:
    page faults were 40 % of a child's time at 12 megapixels.
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


async def run_job(job: DecodeJob, data: bytes) -> tuple[dict[str, Any], int]:
    """Decode a file. Returns the reply and a memfd of the pixels, which the caller closes.

    Cancelling kills the job's process. Raises RejectedFile, or Unavailable where no process can be started or kept.
    """
    for _ in range(TRIES):
        try:
            return await _attempt(job, data)
        except ProcessLost:
            log.warning("a media process was lost while it decoded")
        except OSError as error:
            log.error("no media process can be started: %s", error.strerror)
    raise Unavailable("The file could not be decoded just now.", code="unavailable")


def run_job_blocking(job: DecodeJob, data: bytes, within_s: float) -> tuple[dict[str, Any], int]:
    """Decode a file as `run_job` does, blocking. Raises TimeoutError after `within_s` seconds."""
    with ZYGOTE.submit(job, data) as replies:
        replies.settimeout(within_s)
        return _receive_reply(replies)


async def _attempt(job: DecodeJob, data: bytes) -> tuple[dict[str, Any], int]:
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
        return _receive_reply(replies)


def _wake(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)


def _close(submitted: "Future[socket.socket]") -> None:
    if not submitted.cancelled() and submitted.exception() is None:
        submitted.result().close()


def _receive_reply(replies: socket.socket) -> tuple[dict[str, Any], int]:
    """Read the reply from a readable socket. Raises RejectedFile, or ProcessLost."""
    message, fds, _, _ = socket.recv_fds(replies, MESSAGE, 1)
    reply: dict[str, Any] = json.loads(message) if message else {}
    if fds and "refused" not in reply:
        return reply, fds[0]
    for fd in fds:
        os.close(fd)
    if "refused" in reply:
        raise RejectedFile(reply["refused"], reply["size"] and tuple(reply["size"]))
    if "failed" in reply:  # an exception that the decoder does not expect
        log.error("a media process failed: %s", reply["failed"])
        raise RejectedFile("damaged")
    if "ended" not in reply:
        raise ProcessLost
    number = os.WTERMSIG(reply["ended"]) if os.WIFSIGNALED(reply["ended"]) else 0
    if number == signal.SIGXCPU:
        raise RejectedFile("slow")
    if number == signal.SIGKILL:  # by the kernel, short of memory
        raise ProcessLost
    log.warning("a media process was ended by signal %d", number)
    raise RejectedFile("damaged")


class ShortestFirstQueue:
    """A limit on files decoded at a time, the quickest first, with aging. Large files never take the last free slot."""

    def __init__(self, count: int) -> None:
        self.free = count
        self.free_to_large = max(1, count - 1)
        self._sequence = itertools.count()
        self._waiting: dict[bool, list[tuple[float, int, asyncio.Future[None]]]] = {False: [], True: []}

    @asynccontextmanager
    async def take(self, cost_s: float, deadline: float | None, param: str) -> AsyncIterator[None]:
        """Hold a slot until the block ends. cost_s: expected seconds. deadline: a time of the event loop.

        Raises Overloaded when the deadline passes.
        """
        large = cost_s >= LARGE_S
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        heapq.heappush(self._waiting[large], (loop.time() + PRECEDENCE * cost_s, next(self._sequence), turn))
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
            eligible = [large for large in (False, True) if self._waiting[large] and (self.free_to_large or not large)]
            if not eligible:
                return
            large = min(eligible, key=lambda kind: self._waiting[kind][0])
            _, _, turn = heapq.heappop(self._waiting[large])
            if not turn.done():
                self.free -= 1
                self.free_to_large -= large
                turn.set_result(None)


class BoundedQueue:
    """A limit on videos decoded at a time, first come, first served, and on how many wait; for one event loop."""

    def __init__(self, at_once: int, waiting: int) -> None:
        self._slots = asyncio.Semaphore(at_once)
        self._capacity, self._present = at_once + waiting, 0

    @asynccontextmanager
    async def take(self, deadline: float | None, param: str) -> AsyncIterator[None]:
        """Hold a slot until the block ends. Raises Overloaded at once where the queue is full, else at the deadline."""
        full = Overloaded("Too many videos are being decoded: try again later.", param=param)
        if self._present >= self._capacity:
            raise full
        self._present += 1
        try:
            try:
                async with asyncio.timeout_at(deadline):
                    await self._slots.acquire()
            except TimeoutError:
                raise full from None
            try:
                yield
            finally:
                self._slots.release()
        finally:
            self._present -= 1


@dataclass(frozen=True)
class DecodeQueues:
    """The queues for decoding in one event loop."""

    images: ShortestFirstQueue
    videos: BoundedQueue


_QUEUES: "weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, DecodeQueues]" = weakref.WeakKeyDictionary()


def queues() -> DecodeQueues:
    """Return the queues of the running event loop."""
    loop = asyncio.get_running_loop()
    if loop not in _QUEUES:
        _QUEUES[loop] = DecodeQueues(
            ShortestFirstQueue(min(4, max(2, processors()))), BoundedQueue(VIDEOS_AT_ONCE, VIDEOS_WAITING)
        )
    return _QUEUES[loop]


def processors(group: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many processors this process may use by its affinity and its container's quota, rounded up."""
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
