"""A process that forks a child for each file; the child decodes the file within limits of its own and exits.

python -m serve.media.decoder_process FD        (FD: the control socket, SOCK_SEQPACKET)

Image and video decoders are a million lines of C that parse untrusted input. A file that crashes one, makes it loop or
exhausts its memory ends one small process only. A fork takes 1 ms, starting a Python with Pillow 260 ms. The process
has nothing of the server's: no secrets in its environment, no connections, no threads, no numpy.

A job is a JSON message with two descriptors: the file, and the job's own socket. The child replies on that socket with
JSON, and a memfd of pixels on success; where the child died, this process replies with its exit status. Closing the
other end of the job's socket kills the child; closing the control socket ends everything.
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

from serve.media import pillow_decoder
from serve.media.outline import RejectedFile, read_outline

NICENESS = 10
"""Niceness of the children, so that the server's other work goes first. With the kernel's sched_autogroup niceness
counts within a session only, so the children stay in the server's session."""
MESSAGE = 2**16
LOW_MEMORY = 64 * 2**20
"""A video that fails with less than this many bytes of address space unused is taken to lack memory."""
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)
_PAGE = resource.getpagesize()


def main() -> None:
    """Serve jobs until the other end closes the control socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # from a terminal: the parent decides when to end
    _LIBC.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)  # no network, where the kernel allows that
    _Zygote(socket.socket(fileno=int(sys.argv[1]))).serve()


class _Zygote:
    """The process that forks. It never parses a file."""

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
                    if not self._accept_job():
                        return self._end()
                elif event & (select.POLLHUP | select.POLLERR):
                    self._kill(fd)
            self._reap()

    def _accept_job(self) -> bool:
        try:
            message, fds, _, _ = socket.recv_fds(self.control, MESSAGE, 2)
        except OSError:
            return False
        if not message:
            return False
        file, reply_socket = fds[0], socket.socket(fileno=fds[1])
        job = json.loads(message)
        if job["kind"] != "image":
            _import_av()
        try:
            child = os.fork()
        except OSError as error:
            _send(reply_socket, {"failed": f"fork: {error.strerror}"})
            reply_socket.close()
            os.close(file)
            return True
        if child == 0:
            _child(job, file, reply_socket, self.control.fileno())
        os.close(file)
        self.jobs[child] = reply_socket
        self.poll.register(reply_socket, 0)  # to see the other end close
        return True

    def _kill(self, fd: int) -> None:
        for child, reply_socket in self.jobs.items():
            if reply_socket.fileno() == fd:
                self.poll.unregister(reply_socket)
                os.kill(child, signal.SIGKILL)  # not reaped yet, so the pid is not reused

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
            reply_socket = self.jobs.pop(child)
            with contextlib.suppress(KeyError):
                self.poll.unregister(reply_socket)
            _send(reply_socket, {"ended": status})  # ignored by the other end where the child replied
            reply_socket.close()


def _import_av() -> None:
    with contextlib.suppress(Exception):  # the child fails at it again and reports it
        import serve.media.video_decoder  # noqa: F401


def _child(job: dict[str, Any], file: int, reply_socket: socket.socket, control: int) -> None:
    """Decode a file, reply and exit; never return."""
    code = 1
    try:
        _confine(job, {file, reply_socket.fileno()})
        data = _read_all(file)
        _reply(reply_socket, job, data)
        code = 0
    except BaseException as error:  # a bug: the message may hold parts of the file, so only the type is sent
        with contextlib.suppress(BaseException):
            _send(reply_socket, {"failed": type(error).__name__})
    finally:
        os._exit(code)


def _confine(job: dict[str, Any], kept: set[int]) -> None:
    parent = os.getppid()
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # the parent died before prctl
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
    os.nice(NICENESS + job["nicer"])
    memory = _address_space() + job["memory"]
    for limit, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, job["output"]),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (job["cpu_s"], job["cpu_s"] + 1))  # the soft limit sends SIGXCPU


def _address_space() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * _PAGE


def _read_all(file: int) -> bytes:
    with open(file, "rb", buffering=0) as source:
        source.seek(0)
        return source.read()


def _reply(reply_socket: socket.socket, job: dict[str, Any], data: bytes) -> None:
    output = os.memfd_create("pixels", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        reply = _decode_image(data, output) if job["kind"] == "image" else _decode_video(job, data, output)
    except RejectedFile as refusal:
        reply = {"refused": refusal.why, "size": refusal.size}
    except MemoryError:
        reply = {"refused": "memory", "size": None}
    _send(reply_socket, reply, [] if "refused" in reply else [output])


def _decode_image(data: bytes, output: int) -> dict[str, Any]:
    outline = read_outline(data, whole=True)
    try:
        image = pillow_decoder.load(data, outline)
        if pillow_decoder.is_plain(image, outline.orientation):
            # row by row from Pillow's memory to the file, with no copy between
            image.save(_PixelsOnly(output, "w", closefd=False), "PPM")
        else:
            for strip in pillow_decoder.strips(image, outline.orientation):
                _write(output, strip.tobytes())
    except pillow_decoder.DAMAGE:
        raise RejectedFile("damaged") from None
    return {"size": (outline.width, outline.height)}


class _PixelsOnly(io.FileIO):
    """A file for Pillow's PPM encoder that drops the header; Pillow writes the pixels to the descriptor directly."""

    def write(self, header: Any, /) -> int:
        return len(header)


def _decode_video(job: dict[str, Any], data: bytes, output: int) -> dict[str, Any]:
    from serve.media import video_decoder
    from serve.media.video_caps import Caps

    try:
        return video_decoder.decode_frames(data, job["kind"], Caps(**job["caps"]), lambda frame: _write(output, frame))
    except RejectedFile as refusal:
        # FFmpeg does not always report a lack of memory
        if refusal.why == "damaged" and _unused_address_space() < LOW_MEMORY:
            raise MemoryError from None
        raise


def _unused_address_space() -> int:
    """Return the bytes of the address space limit that were never used."""
    with open("/proc/self/status") as file:
        peak = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmPeak"))
    return resource.getrlimit(resource.RLIMIT_AS)[0] - peak


def _write(output: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(output, view) :]


def _send(reply_socket: socket.socket, message: dict[str, Any], fds: list[int] | None = None) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    with contextlib.suppress(OSError):  # the other end is closed
        reply_socket.sendmsg([json.dumps(message).encode()], rights, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)


if __name__ == "__main__":
    main()
