"""A process that forks one child for each file: the child decodes it within limits of its own, and ends.

    python -m serve.media.decoder FD        (FD: the control socket, SOCK_SEQPACKET)

Decoders are a million lines of C that read what strangers send. Here a file that crashes one, makes it loop or asks for
all the memory costs one small process. Forking takes 1 ms, where starting a Python with Pillow takes 260. Nothing of
the server is in here: no secret in the environment, no connection, no thread, no numpy.

A job comes as JSON with two descriptors: the file, and the job's own socket. The child replies there with JSON, and
with a memfd of pixels where there are any; where the child died instead, this process says by what. When the other end
of the job's socket is closed, the child is killed; when the control socket is, everything ends.
"""

import array
import contextlib
import ctypes
import io
import json
import os
import resource
import select
import signal
import socket
import sys
from typing import Any

from serve.media import pixels
from serve.media.outline import Refused, outline

NICENESS = 10
"""Of the children: whatever else the server has to do goes first. Where the kernel gives each session its share of the
processors (sched_autogroup) it counts within one only, so they stay in the server's."""
MESSAGE = 2**16
NARROW = 64 * 2**20
"""A film that left less than so much of its memory unused may have wanted more."""
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)
_PAGE = resource.getpagesize()


def main() -> None:
    """Serve jobs until the other end closes the control socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's: our parent decides when to end
    _LIBC.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)  # no network, where the kernel lets us give it up
    _Zygote(socket.socket(fileno=int(sys.argv[1]))).serve()


class _Zygote:
    """The process that forks. It never looks into a file."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self.jobs: dict[int, socket.socket] = {}
        self.poll = select.poll()
        woken, wake = os.pipe()
        for end in (woken, wake):
            os.set_blocking(end, False)
        self.woken = woken
        signal.set_wakeup_fd(wake)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.poll.register(woken, select.POLLIN)
        self.poll.register(control, select.POLLIN)

    def serve(self) -> None:
        while True:
            for fd, event in self.poll.poll():
                if fd == self.woken:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self.woken, MESSAGE)
                elif fd == self.control.fileno():
                    if not self._take():
                        return self._end()
                elif event & (select.POLLHUP | select.POLLERR):
                    self._kill(fd)
            self._reap()

    def _take(self) -> bool:
        try:
            message, fds, _, _ = socket.recv_fds(self.control, MESSAGE, 2)
        except OSError:
            return False
        if not message:
            return False
        file, job = fds[0], socket.socket(fileno=fds[1])
        order = json.loads(message)
        if order["kind"] != "image":
            _import_av()
        try:
            child = os.fork()
        except OSError as error:
            _send(job, {"failed": f"fork: {error.strerror}"})
            job.close()
            os.close(file)
            return True
        if child == 0:
            _child(order, file, job, self.control.fileno())
        os.close(file)
        self.jobs[child] = job
        self.poll.register(job, 0)  # only for the end of the other side
        return True

    def _kill(self, fd: int) -> None:
        for child, job in self.jobs.items():
            if job.fileno() == fd:
                self.poll.unregister(job)
                os.kill(child, signal.SIGKILL)  # not reaped yet, so it is still this child's number

    def _end(self) -> None:
        for child in self.jobs:
            os.kill(child, signal.SIGKILL)
        for child in self.jobs:
            os.waitpid(child, 0)

    def _reap(self) -> None:
        while self.jobs:
            child, status = os.waitpid(-1, os.WNOHANG)
            if child == 0:
                return
            job = self.jobs.pop(child)
            with contextlib.suppress(KeyError):
                self.poll.unregister(job)
            _send(job, {"ended": status})  # of one that has replied nobody reads this
            job.close()


def _import_av() -> None:
    with contextlib.suppress(Exception):  # the child stumbles over it again, and says so
        import serve.media.film_decoder  # noqa: F401


def _child(order: dict[str, Any], file: int, job: socket.socket, control: int) -> None:
    """Never returns."""
    code = 1
    try:
        _confine(order, {file, job.fileno()})
        data = _contents(file)
        _reply(job, order, data)
        code = 0
    except BaseException as error:  # a bug: its words may be the file's, so that only its kind is told
        with contextlib.suppress(BaseException):
            _send(job, {"failed": type(error).__name__})
    finally:
        os._exit(code)


def _confine(order: dict[str, Any], kept: set[int]) -> None:
    parent = os.getppid()
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # it died before we asked to be told
    _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    empty = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(empty, standard)
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd > 2 and fd not in kept:
            with contextlib.suppress(OSError):
                os.close(fd)
    os.nice(NICENESS + order["nicer"])
    memory = _address_space() + order["memory"]
    for limit, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, order["output"]),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (order["cpu_s"], order["cpu_s"] + 1))  # SIGXCPU, which tells it apart


def _address_space() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * _PAGE


def _contents(file: int) -> bytes:
    with open(file, "rb", buffering=0) as source:
        source.seek(0)
        return source.read()


def _reply(job: socket.socket, order: dict[str, Any], data: bytes) -> None:
    output = os.memfd_create("pixels", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        said = _image(data, output) if order["kind"] == "image" else _film(order, data, output)
    except Refused as refusal:
        said = {"refused": refusal.why, "size": refusal.size}
    except MemoryError:
        said = {"refused": "memory", "size": None}
    _send(job, said, [] if "refused" in said else [output])


def _image(data: bytes, output: int) -> dict[str, Any]:
    found = outline(data, whole=True)
    try:
        picture = pixels.loaded(data, found)
        if pixels.is_plain(picture, found.orientation):
            # row by row from Pillow's memory to the file, with no copy between
            picture.save(_PixelsOnly(output, "w", closefd=False), "PPM")
        else:
            for strip in pixels.strips(picture, found.orientation):
                _write(output, strip.tobytes())
    except pixels.DAMAGE:
        raise Refused("damaged") from None
    return {"size": (found.width, found.height)}


class _PixelsOnly(io.FileIO):
    """A file that takes a PPM picture without its header: Pillow writes the pixels by the file's descriptor."""

    def write(self, header: Any, /) -> int:
        return len(header)


def _film(order: dict[str, Any], data: bytes, output: int) -> dict[str, Any]:
    from serve.media import film_decoder
    from serve.media.video_caps import Caps

    try:
        return film_decoder.decode(data, order["kind"], Caps(**order["caps"]), lambda frame: _write(output, frame))
    except Refused as refusal:
        if refusal.why == "damaged" and _room() < NARROW:  # FFmpeg does not always say what it lacked
            raise MemoryError from None
        raise


def _room() -> int:
    """Bytes of address space that were never used."""
    with open("/proc/self/status") as file:
        peak = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmPeak"))
    return resource.getrlimit(resource.RLIMIT_AS)[0] - peak


def _write(output: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(output, view) :]


def _send(job: socket.socket, said: dict[str, Any], fds: list[int] | None = None) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    with contextlib.suppress(OSError):  # nobody listens any more
        job.sendmsg([json.dumps(said).encode()], rights, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)


if __name__ == "__main__":
    main()
