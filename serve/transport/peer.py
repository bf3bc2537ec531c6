"""The base class of both ends of a connection: sends messages, batched per turn of the event loop, and receives them.

Many small messages in one frame cost a fifth of as many frames, but where one of them cannot be unpickled all are lost.
So only messages that can always be unpickled are batched.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, cast

from serve.transport.frames import PIECE_BYTES, BadFrame, Bytes, Reader, Unreadable, encode_frame, pieces

log = logging.getLogger(__name__)

MAX_UNSENT_BYTES = 2 * PIECE_BYTES
"""Bytes in the transport's buffer from which on only small messages are written."""
PIECES_PER_TURN = 4
MAX_BATCH = 256
"""Largest number of messages in one frame."""


class Peer(asyncio.Protocol):
    """Either end of a connection. last_heard: monotonic time in seconds of the last byte received."""

    def __init__(self) -> None:
        self.last_heard = time.monotonic()
        self._reader = Reader()
        self._batch: list[Any] = []
        self._outbox: list[Bytes] = []
        self._outbox_bytes = 0
        self._large_frames: deque[_LargeFrame] = deque()
        self._writing = False
        self._writable = asyncio.Event()
        self._writable.set()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own is not declared to be one
        self._transport.set_write_buffer_limits(MAX_UNSENT_BYTES)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._batch.clear()
        self._outbox.clear()
        self._large_frames.clear()
        self._writable.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()
        self._write_on()

    def data_received(self, data: bytes) -> None:
        self.last_heard = time.monotonic()
        try:
            messages = self._reader.feed(data)
        except BadFrame:
            log.exception("disconnecting a peer that sent no valid frame")
            if self._transport is not None:
                self._transport.abort()
            return
        for message in messages:
            if isinstance(message, list):
                for single in message:
                    self.on_message(single)
            elif isinstance(message, Unreadable):
                log.error("a message cannot be unpickled", exc_info=message.error)
                self.on_unreadable(message)
            else:
                self.on_message(message)

    def on_message(self, message: Any) -> None:
        raise NotImplementedError

    def on_unreadable(self, message: Unreadable) -> None:
        """Fail the stream of a message that cannot be unpickled."""
        raise NotImplementedError

    def send(self, message: Any) -> None:
        """Send a small message, in one frame with others of this turn of the loop.

        It must be one that can always be unpickled. Does nothing when the connection is lost.
        """
        self._flush_soon()
        self._batch.append(message)
        if len(self._batch) >= MAX_BATCH:
            self._flush()

    def send_alone(self, message: Any, number: int) -> None:
        """Send a message of a stream in a frame of its own. Raises whatever pickling raises."""
        self._send(encode_frame(message, number))

    def send_large(self, frame: list[Bytes], number: int) -> None:
        """Send a frame that may be large: in pieces, with small messages in between, as fast as the peer reads."""
        if self._writable.is_set() and sum(map(len, frame)) <= PIECE_BYTES:
            self._send(frame)
        else:
            self._large_frames.append(_LargeFrame(number, frame))
            self._write_on()

    def withdraw(self, number: int) -> bool:
        """Stop sending the frame given to `send_large` under this number. Return whether the peer has a part of it."""
        for frame in self._large_frames:
            if frame.number == number:
                self._large_frames.remove(frame)
                return frame.begun
        return True

    async def wait_until_writable(self) -> None:
        """Wait until the peer has read most of the sent bytes, or the connection is lost."""
        await self._writable.wait()

    @property
    def congested(self) -> bool:
        """True while the peer reads more slowly than we send."""
        return not self._writable.is_set()

    def close(self) -> None:
        if self._transport is not None:
            self._flush()
            self._transport.close()

    def _send(self, frame: list[Bytes]) -> None:
        self._flush_soon()
        self._encode_batch()
        self._outbox += frame
        self._outbox_bytes += sum(map(len, frame))
        if self._outbox_bytes > MAX_UNSENT_BYTES:  # for a caller that never yields to the loop
            self._flush()

    def _flush_soon(self) -> None:
        if not self._outbox and not self._batch:
            asyncio.get_running_loop().call_soon(self._flush)

    def _encode_batch(self) -> None:
        if self._batch:
            messages, self._batch = self._batch, []
            self._outbox += encode_frame(messages)

    def _flush(self) -> None:
        self._encode_batch()
        frames, self._outbox, self._outbox_bytes = self._outbox, [], 0
        if frames and self._transport is not None:
            self._transport.writelines(frames)

    def _write_on(self) -> None:
        if not self._writing and self._large_frames and self._writable.is_set():
            self._writing = True
            asyncio.get_running_loop().call_soon(self._write_pieces)

    def _write_pieces(self) -> None:
        """Write PIECES_PER_TURN pieces, of each large frame in turn; then let the loop do other work."""
        self._writing = False
        for _ in range(PIECES_PER_TURN):
            if self._large_frames and self._transport is not None and self._writable.is_set():
                frame = self._large_frames.popleft()
                self._transport.writelines(frame.take())
                if not frame.over:
                    self._large_frames.append(frame)
        self._write_on()


class _LargeFrame:
    """A frame that is sent piece by piece."""

    def __init__(self, number: int, frame: list[Bytes]) -> None:
        self.number = number
        self.begun = self.over = False
        self._pieces: Iterator[list[Bytes]] = pieces(frame, number)
        self._next = next(self._pieces)

    def take(self) -> list[Bytes]:
        piece, following = self._next, next(self._pieces, None)
        self.begun = True
        if following is None:
            self.over = True
        else:
            self._next = following
        return piece
