"""One end of a connection: messages out, gathered for a turn of the loop, and messages in.

Many small messages in one frame cost a fifth of what they cost in a frame each, but where one of them cannot be
unpickled the others are lost too. So only messages that always can share a frame.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, cast

from serve.rpc.frames import PIECE_BYTES, Bytes, Garbled, Reader, Unreadable, encode, pieces

log = logging.getLogger(__name__)

UNSENT_BYTES = 2 * PIECE_BYTES
"""So much may wait in the transport before we write no more than small messages."""
PIECES_A_TURN = 4
MOST_TOGETHER = 256
"""Messages in one frame."""


class Peer(asyncio.Protocol):
    """What the two ends have in common. heard: when the other end last sent anything, whole or not (monotonic)."""

    def __init__(self) -> None:
        self.heard = time.monotonic()
        self._reader = Reader()
        self._together: list[Any] = []
        self._outbox: list[Bytes] = []
        self._outbox_bytes = 0
        self._parcels: deque[_Parcel] = deque()
        self._writing = False
        self._writable = asyncio.Event()
        self._writable.set()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own is not declared to be one
        self._transport.set_write_buffer_limits(UNSENT_BYTES)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._together.clear()
        self._outbox.clear()
        self._parcels.clear()
        self._writable.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()
        self._write_on()

    def data_received(self, data: bytes) -> None:
        self.heard = time.monotonic()
        try:
            messages = self._reader.feed(data)
        except Garbled:
            log.exception("a peer that does not send frames is cut off")
            if self._transport is not None:
                self._transport.abort()
            return
        for message in messages:
            if isinstance(message, list):
                for single in message:
                    self.hear(single)
            elif isinstance(message, Unreadable):
                log.error("a message cannot be read", exc_info=message.error)
                self.missed(message)
            else:
                self.hear(message)

    def hear(self, message: Any) -> None:
        """Do what a message says."""
        raise NotImplementedError

    def missed(self, message: Unreadable) -> None:
        """Let the stream know that it is about."""
        raise NotImplementedError

    def say(self, message: Any) -> None:
        """Send a small message, in one frame with whatever else is said before the loop comes round. It must be one
        that can always be unpickled. To a peer that is gone: nothing."""
        self._flush_soon()
        self._together.append(message)
        if len(self._together) >= MOST_TOGETHER:
            self._flush()

    def say_alone(self, message: Any, number: int) -> None:
        """Send a message about a stream in a frame of its own. Raises whatever pickling raises."""
        self._send(encode(message, number))

    def post(self, frame: list[Bytes], number: int) -> None:
        """Send a frame that may be large: piece by piece, small messages between, as fast as the peer reads it."""
        if self._writable.is_set() and sum(map(len, frame)) <= PIECE_BYTES:
            self._send(frame)
        else:
            self._parcels.append(_Parcel(number, frame))
            self._write_on()

    def recall(self, number: int) -> bool:
        """Send no more of what was posted under this number. Return whether some of it is on its way already."""
        for parcel in self._parcels:
            if parcel.number == number:
                self._parcels.remove(parcel)
                return parcel.begun
        return True

    async def drained(self) -> None:
        """Wait until the peer has read most of what it was sent, or is gone."""
        await self._writable.wait()

    @property
    def behind(self) -> bool:
        """Whether the peer reads more slowly than we send."""
        return not self._writable.is_set()

    def close(self) -> None:
        if self._transport is not None:
            self._flush()
            self._transport.close()

    def _send(self, frame: list[Bytes]) -> None:
        self._flush_soon()
        self._encode_together()
        self._outbox += frame
        self._outbox_bytes += sum(map(len, frame))
        if self._outbox_bytes > UNSENT_BYTES:  # who sends without letting the loop come round fills no memory
            self._flush()

    def _flush_soon(self) -> None:
        if not self._outbox and not self._together:
            asyncio.get_running_loop().call_soon(self._flush)

    def _encode_together(self) -> None:
        if self._together:
            messages, self._together = self._together, []
            self._outbox += encode(messages)

    def _flush(self) -> None:
        self._encode_together()
        frames, self._outbox, self._outbox_bytes = self._outbox, [], 0
        if frames and self._transport is not None:
            self._transport.writelines(frames)

    def _write_on(self) -> None:
        if not self._writing and self._parcels and self._writable.is_set():
            self._writing = True
            asyncio.get_running_loop().call_soon(self._write_pieces)

    def _write_pieces(self) -> None:
        """Write a few pieces, of each parcel in its turn; what else there is to do comes before the next few."""
        self._writing = False
        for _ in range(PIECES_A_TURN):
            if self._parcels and self._transport is not None and self._writable.is_set():
                parcel = self._parcels.popleft()
                self._transport.writelines(parcel.take())
                if not parcel.over:
                    self._parcels.append(parcel)
        self._write_on()


class _Parcel:
    """A frame of which some is still to be written."""

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
