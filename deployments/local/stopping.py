"""Takes signals in a thread, which can stop everything whatever the main thread does.

An exception that a signal handler raises comes out wherever the main thread is. Inside Ray it is lost in a callback,
breaks an import half way (SystemError), or waits for C++ that does not return. So our handlers do nothing: Python
writes the numbers of signals to a socket (signal.set_wakeup_fd), and a thread reads them there.
"""

import contextlib
import os
import select
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

STOPS = (signal.SIGINT, signal.SIGTERM)
DRAIN_MARGIN_S = 1.0
"""Seconds beyond drain_s for which a drain is waited for."""


class Stopper:
    """Ends this process with a status on SIGINT (Ctrl-C, at once) or SIGTERM (after `drain`), in a `with` block.

    stop: ends our other processes. drain: finishes running requests in at most the seconds that it is given; used while
    `serving` is set. A second signal ends it. reload: set by SIGHUP, which stops where our terminal was closed.
    """

    def __init__(
        self,
        stop: Callable[[], None],
        drain: Callable[[float], None] = lambda seconds: None,
        drain_s: float = 0,
        *,
        status: int = 0,
    ) -> None:
        self.reload, self.serving, self.drain_s = threading.Event(), threading.Event(), drain_s
        self._stop, self._drain, self._status = stop, drain, status
        self._stopping = threading.Event()
        self._terminal = os.isatty(0)
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)

    def __enter__(self) -> None:
        self.take_signals()

    def __exit__(self, *_: object) -> None:
        """Wait for the end of this process where it is being stopped: what fails meanwhile fails because of that."""
        while self._stopping.is_set():
            time.sleep(1.0)

    def take_signals(self) -> None:
        """Take the signals from here on, also from handlers that something else has set. Call it in the main thread."""
        for number in (*STOPS, signal.SIGHUP):
            signal.signal(number, _ignore)
        if signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False) == -1:
            threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> NoReturn:
        while True:
            (number,) = self._reader.recv(1)
            if number in STOPS or (number == signal.SIGHUP and self._terminal and not os.isatty(0)):
                self._end(gently=number == signal.SIGTERM and self.serving.is_set())
            elif number == signal.SIGHUP:
                self.reload.set()

    def _end(self, gently: bool) -> NoReturn:
        self._stopping.set()
        status = 1
        try:
            if gently:
                self._finish()
            self._stop()
            status = self._status
            with contextlib.suppress(OSError):  # the terminal may be closed
                print("\nStopped.", flush=True)
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(status)

    def _finish(self) -> None:
        """Wait for `drain`, or for a second signal."""
        draining = threading.Thread(target=self._drain, args=[self.drain_s], daemon=True)
        draining.start()
        until = time.monotonic() + self.drain_s + DRAIN_MARGIN_S  # it may wait a minute for a Ray that is gone
        while draining.is_alive() and time.monotonic() < until:
            if select.select([self._reader], [], [], 0.1)[0] and self._reader.recv(1)[0] in STOPS:
                return


def _ignore(_number: int, _frame: object) -> None:
    """Do nothing. A handler of Python's must be there for Python to write the number."""
