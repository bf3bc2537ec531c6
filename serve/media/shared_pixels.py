"""Pixels in memory that several processes of one machine can map: nothing is copied, and nothing is left behind.

They live in a memfd. The kernel frees it with the last process that holds it open or mapped, however that process ends,
so there is no name to clean up. Linux only.
"""

import contextlib
import fcntl
import mmap
import os
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import numpy as np

from serve.errors import ModelError

CHANNELS = 3
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
"""Without them whoever holds the file could cut it short, and a process that reads the lost part is killed (SIGBUS)."""

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
_peer_opens_handles: ContextVar[bool] = ContextVar("peer_opens_handles", default=False)


@contextlib.contextmanager
def pickling_for(*, peer_opens_handles: bool) -> Iterator[None]:
    """Say for whom is pickled within: whether handles may travel instead of pixels."""
    token = _peer_opens_handles.set(peer_opens_handles)
    try:
        yield
    finally:
        _peer_opens_handles.reset(token)


def handles_travel() -> bool:
    """Return whether what is being pickled now goes to a process that can open our handles."""
    return _peer_opens_handles.get()


class Handle(NamedTuple):
    """Where another process of this machine finds the pixels: a descriptor of the process that owns them."""

    pid: int
    fd: int
    inode: int
    width: int
    height: int


class SharedPixels:
    """RGB pixels, uint8 [height, width, 3], in a memfd.

    Who created them writes them; who adopted or opened them only reads. They are mapped when they are first looked at.
    """

    def __init__(self, width: int, height: int, *, fd: int | None = None, source: Handle | None = None) -> None:
        """Use `create`, `adopt` or `open`. fd: owned from now on. source: where to open them instead."""
        self.width, self.height = width, height
        self._fd = fd
        self._source = source
        self._writes = False
        self._pixels: Pixels | None = None

    @classmethod
    def create(cls, width: int, height: int) -> "SharedPixels":
        """Return new pixels, all zero, that this process may write. Raises OSError where there are no descriptors."""
        fd = os.memfd_create("pixels", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, _size(width, height))
            return cls._owning(fd, width, height, writes=True)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def adopt(cls, fd: int, width: int, height: int) -> "SharedPixels":
        """Return the pixels in a memfd that another process gave us, to be read. `fd` is closed with them.

        Raises ValueError for a descriptor that is no memfd of this size; it is closed then as well.
        """
        try:
            return cls._owning(fd, width, height, writes=False)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def open(cls, handle: Handle) -> "SharedPixels":
        """Return the pixels of another process. They are opened when they are first looked at."""
        return cls(handle.width, handle.height, source=handle)

    @classmethod
    def _owning(cls, fd: int, width: int, height: int, *, writes: bool) -> "SharedPixels":
        _seal(fd)
        _check(fd, width, height)
        shared = cls(width, height, fd=fd)
        shared._writes = writes
        return shared

    @property
    def nbytes(self) -> int:
        return _size(self.width, self.height)

    @property
    def pixels(self) -> Pixels:
        """The pixels as an array on the shared memory. Raises ModelError where they are gone.

        The array stays usable after `close`: the memory is freed when the last array is.
        """
        if self._pixels is None:
            self._pixels = self._mapped(self._fd) if self._fd is not None else self._opened()
        return self._pixels

    def handle(self) -> Handle:
        """Return where other processes of this machine can open these pixels, for as long as they are not closed.

        Raises ModelError where they are closed already.
        """
        if self._source is not None:
            return self._source
        if self._fd is None:
            raise _gone()
        return Handle(os.getpid(), self._fd, os.fstat(self._fd).st_ino, self.width, self.height)

    def close(self) -> None:
        """Let go of the memory and of the descriptor. Pixels that were opened by a handle can be opened again."""
        self._pixels = None
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def __del__(self) -> None:
        self.close()

    def _opened(self) -> Pixels:
        """Map the other process's pixels. The mapping keeps them, so no descriptor stays open for long."""
        if self._source is None:
            raise _gone()
        pid, number, inode, width, height = self._source
        try:
            fd = os.open(f"/proc/{pid}/fd/{number}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise _gone() from error
        try:
            # The number may stand for another file by now.
            if os.fstat(fd).st_ino != inode or fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
                raise _gone()
            _check(fd, width, height)
            return self._mapped(fd)
        except (OSError, ValueError) as error:
            raise _gone() from error
        finally:
            os.close(fd)

    def _mapped(self, fd: int) -> Pixels:
        access = mmap.ACCESS_WRITE if self._writes else mmap.ACCESS_READ
        memory = mmap.mmap(fd, self.nbytes, access=access)
        return np.frombuffer(memory, np.uint8).reshape(self.height, self.width, CHANNELS)


def _size(width: int, height: int) -> int:
    if width < 1 or height < 1:
        raise ValueError(f"pixels of {width} x {height}")
    return width * height * CHANNELS


def _seal(fd: int) -> None:
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except OSError as error:
        raise ValueError("a descriptor that is no memfd, or one that cannot be sealed") from error


def _check(fd: int, width: int, height: int) -> None:
    size = os.fstat(fd).st_size
    if size != _size(width, height):
        raise ValueError(f"a memfd of {size} bytes for {width} x {height} pixels")


def _gone() -> ModelError:
    return ModelError("The picture's pixels are gone: the request that they belong to has ended.", code="picture_gone")
