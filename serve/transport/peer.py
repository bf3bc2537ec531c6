"""The base class of both ends of a connection: sends and receives messages in frames.

Messages are batched per turn of the event loop. Many small ones in one frame cost a fifth of as many frames, but where
one of them cannot be unpickled all are lost. So only messages that can always be unpickled are batched. Large arrays
are copied neither into the pickle nor out of it.

A frame holds one object, or a list of several: the number of its stream (uint64; 0: none, or several), the number of
parts (uint32), each part's length (uint64 each), the parts. The first part is a pickle, the others are its out-of-band
buffers (PEP 574). A frame without parts is a piece of a larger frame: a length, and that many of the larger frame's
bytes. So small frames can be sent between the pieces of a large one.

Unpickling runs code that the bytes name, so only a peer that has sent the token is read (serve/transport/server.py).
"""

import asyncio
import logging
import pickle
import struct
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

from serve.errors import TooLarge
from serve.media.shared_pixels import pickling_for

log = logging.getLogger(__name__)

HEAD, LENGTH = struct.Struct("<QI"), struct.Struct("<Q")
_SHORT = struct.Struct("<QIQ")
"""The head of a frame with one part, or of a piece."""
MAX_PARTS = 1024
MAX_BYTES = 4 * 2**30
PIECE_BYTES = 256 * 1024
MAX_UNSENT_BYTES = 2 * PIECE_BYTES
"""Bytes in the transport's buffer from which on only small messages are written."""
PIECES_PER_TURN = 4
MAX_BATCH = 256
"""Largest number of messages in one frame."""

Bytes = bytes | memoryview


class BadFrame(Exception):
    """The bytes received are not a frame."""


class Unreadable(NamedTuple):
    """A frame whose object cannot be unpickled here. The frames around it can."""

    number: int
    error: Exception


def encode_frame(thing: Any, number: int = 0, *, peer_opens_handles: bool = False) -> list[Bytes]:
    """Return the frame's bytes, in pieces to be written one after the other.

    number: of its stream. peer_opens_handles: send shared pixels as handles. Raises TooLarge beyond MAX_BYTES, and
    whatever pickling raises.
    """
    buffers: list[Bytes] = []

    def keep_apart(buffer: pickle.PickleBuffer) -> bool:
        """Keep a buffer out of the pickle, unless the frame has MAX_PARTS parts already."""
        if len(buffers) == MAX_PARTS - 1:
            return True
        buffers.append(buffer.raw())
        return False

    with pickling_for(peer_opens_handles=peer_opens_handles):
        parts: list[Bytes] = [pickle.dumps(thing, protocol=5, buffer_callback=keep_apart)]
    parts += buffers
    lengths = [len(part) for part in parts]
    if sum(lengths) > MAX_BYTES:
        raise TooLarge(f"The request is larger than the {MAX_BYTES // 2**30} GB that a model's process is sent.")
    return [HEAD.pack(number, len(parts)) + b"".join(map(LENGTH.pack, lengths)), *parts]


def pieces(frame: Sequence[Bytes], number: int) -> Iterator[list[Bytes]]:
    """Cut a frame into pieces of at most PIECE_BYTES, which a Reader joins again."""
    for part in frame:
        whole = memoryview(part)
        for at in range(0, len(whole), PIECE_BYTES):
            piece = whole[at : at + PIECE_BYTES]
            yield [_SHORT.pack(number, 0, len(piece)), piece]


class Reader:
    """Decodes frames from bytes as they arrive."""

    def __init__(self) -> None:
        self._frame = _Frame()
        self._large: dict[int, _Frame] = {}
        self._piece_of, self._piece_left = 0, 0

    def feed(self, data: bytes) -> list[Any]:
        """Return the objects complete by now, Unreadable for one that cannot be unpickled. Raises BadFrame."""
        things: list[Any] = []
        rest = memoryview(data)
        while rest:
            if self._piece_left:
                rest = self._read_piece(rest, things)
            elif not self._frame.begun and (thing := _short(rest)) is not None:
                things.append(thing[0])
                rest = thing[1]
            else:
                rest = self._frame.feed(rest)
                if self._frame.piece_bytes:
                    self._piece_of, self._piece_left = self._frame.number, self._frame.piece_bytes
                    self._frame = _Frame()
                elif self._frame.whole:
                    things.append(self._frame.thing())
                    self._frame = _Frame()
        return things

    def forget(self, number: int) -> None:
        """Drop the received part of a large frame whose rest will not be sent."""
        self._large.pop(number, None)

    def _read_piece(self, rest: memoryview, things: list[Any]) -> memoryview:
        piece = rest[: self._piece_left]
        self._piece_left -= len(piece)
        frame = self._large.setdefault(self._piece_of, _Frame())
        if frame.feed(piece) or frame.piece_bytes:
            raise BadFrame("pieces that are more than their frame")
        if frame.whole:
            things.append(frame.thing())
            del self._large[self._piece_of]
        return rest[len(piece) :]


class _Frame:
    """A frame that is not complete yet. piece_bytes: where it is a piece, the length of what follows."""

    def __init__(self) -> None:
        self.number, self.piece_bytes = 0, 0
        self.whole = False
        self._head = bytearray()
        self._lengths: list[int] = []
        self._body = bytearray()
        self._filled = 0

    @property
    def begun(self) -> bool:
        return bool(self._head)

    def feed(self, rest: memoryview) -> memoryview:
        """Take the bytes that belong to this frame; return the others."""
        if not self._lengths:
            rest = self._read_head(rest)
            if not self._lengths:
                return rest
        taken = min(len(rest), len(self._body) - self._filled)
        memoryview(self._body)[self._filled : self._filled + taken] = rest[:taken]
        self._filled += taken
        self.whole = self._filled == len(self._body)
        return rest[taken:]

    def thing(self) -> Any:
        body, at, parts = memoryview(self._body), 0, []
        for length in self._lengths:
            parts.append(body[at : at + length])
            at += length
        return _unpickled(self.number, parts)

    def _read_head(self, rest: memoryview) -> memoryview:
        if len(self._head) < HEAD.size:
            rest = self._take(rest, HEAD.size)
            if len(self._head) < HEAD.size:
                return rest
        self.number, parts = HEAD.unpack_from(self._head)
        if parts > MAX_PARTS:
            raise BadFrame(f"a frame of {parts} parts")
        wanted = HEAD.size + LENGTH.size * max(parts, 1)
        rest = self._take(rest, wanted)
        if len(self._head) == wanted:
            lengths = [length for (length,) in LENGTH.iter_unpack(self._head[HEAD.size :])]
            if not 1 <= sum(lengths) <= MAX_BYTES:
                raise BadFrame(f"a frame of {sum(lengths)} bytes")
            if parts == 0:
                self.piece_bytes = lengths[0]
            else:
                self._lengths, self._body = lengths, bytearray(sum(lengths))
        return rest

    def _take(self, rest: memoryview, wanted: int) -> memoryview:
        taken = wanted - len(self._head)
        self._head += rest[:taken]
        return rest[taken:]


def _short(rest: memoryview) -> tuple[Any, memoryview] | None:
    """Read a frame of one part that is complete, as most are, without copying it."""
    if len(rest) < _SHORT.size:
        return None
    number, parts, length = _SHORT.unpack_from(rest)
    end = _SHORT.size + length
    if parts != 1 or length == 0 or end > len(rest):
        return None
    return _unpickled(number, [rest[_SHORT.size : end]]), rest[end:]


def _unpickled(number: int, parts: Sequence[memoryview]) -> Any:
    try:
        return pickle.loads(parts[0], buffers=parts[1:])
    except Exception as error:  # any: unpickling runs the classes' own code; the next frame is still good
        return Unreadable(number, error)


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

    def excuse(self, stood_s: float) -> None:
        """Count no silence for the seconds in which our own loop was blocked, or our process stopped: what came in them
        was not read yet."""
        self.last_heard = min(time.monotonic(), self.last_heard + stood_s)

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
