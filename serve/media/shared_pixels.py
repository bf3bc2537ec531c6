"""Pixels in shared memory that processes of one machine map without copying.

The memory is a memfd. The kernel frees it when the last process that has it open or mapped ends, so nothing needs to be
cleaned up. Linux only.
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
"""Without these seals a holder could truncate the file, and a process that reads beyond its end is killed (SIGBUS)."""

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
_peer_opens_handles: ContextVar[bool] = ContextVar("peer_opens_handles", default=False)


@contextlib.contextmanager
def pickling_for(*, peer_opens_handles: bool) -> Iterator[None]:
    """State whether the receiver of what is pickled in this block can open handles, which replace pixels then."""
    token = _peer_opens_handles.set(peer_opens_handles)
    try:
        yield
    finally:
        _peer_opens_handles.reset(token)


def handles_travel() -> bool:
    """Return whether the receiver of what is being pickled can open handles (`pickling_for`)."""
    return _peer_opens_handles.get()


class Handle(NamedTuple):
    """A reference to pixels for other processes of this machine: a descriptor of the process that owns them."""

    pid: int
    fd: int
    inode: int
    width: int
    height: int


class SharedPixels:
    """RGB pixels, uint8 [height, width, 3], in a memfd.

    Writable after `create`, read-only after `adopt` and `open`. The memory is mapped on first use.
    """

    def __init__(self, width: int, height: int, *, fd: int | None = None, source: Handle | None = None) -> None:
        """Use `create`, `adopt` or `open` instead. fd: owned from now on. source: opened where there is no fd."""
        self.width, self.height = width, height
        self._fd = fd
        self._source = source
        self._writes = False
        self._pixels: Pixels | None = None

    @classmethod
    def create(cls, width: int, height: int) -> "SharedPixels":
        """Return new writable pixels, all zero. Raises OSError where no descriptor is free."""
        fd = os.memfd_create("pixels", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, _size(width, height))
            return cls._from_fd(fd, width, height, writes=True)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def adopt(cls, fd: int, width: int, height: int) -> "SharedPixels":
        """Return read-only pixels in a memfd that another process sent. `close` closes `fd`.

        Raises ValueError, and closes `fd`, where it is not a memfd of this size.
        """
        try:
            return cls._from_fd(fd, width, height, writes=False)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def open(cls, handle: Handle) -> "SharedPixels":
        """Return read-only pixels of another process, which are opened on first use."""
        return cls(handle.width, handle.height, source=handle)

    @classmethod
    def _from_fd(cls, fd: int, width: int, height: int, *, writes: bool) -> "SharedPixels":
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
        """Return an array on the shared memory. Raises ModelError where the owner has closed it.

        The array stays valid after `close`: the memory is freed with the last array.
        """
        if self._pixels is None:
            self._pixels = self._map(self._fd) if self._fd is not None else self._open_source()
        return self._pixels

    def handle(self) -> Handle:
        """Return a handle with which other processes of this machine can open these pixels until they are closed.

        Raises ModelError where they are closed already.
        """
        if self._source is not None:
            return self._source
        if self._fd is None:
            raise _gone()
        return Handle(os.getpid(), self._fd, os.fstat(self._fd).st_ino, self.width, self.height)

    def close(self) -> None:
        """Close the descriptor and drop the mapping. Pixels that were opened by a handle can be opened again."""
        self._pixels = None
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def __del__(self) -> None:
        self.close()

    def _open_source(self) -> Pixels:
        """Map the other process's pixels. The mapping keeps the memory alive, so the descriptor is closed again."""
        if self._source is None:
            raise _gone()
        pid, number, inode, width, height = self._source
        try:
            fd = os.open(f"/proc/{pid}/fd/{number}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise _gone() from error
        try:
            # The descriptor's number may have been reused.
            if os.fstat(fd).st_ino != inode or fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
                raise _gone()
            _check(fd, width, height)
            return self._map(fd)
        except (OSError, ValueError) as error:
            raise _gone() from error
        finally:
            os.close(fd)

    def _map(self, fd: int) -> Pixels:
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
