"""Encodes Python objects as frames on a byte stream. Large arrays are copied neither into the pickle nor out of it.

A frame holds one object: the number of its stream (uint64; 0: none, or several), the number of parts (uint32), each
part's length (uint64 each), the parts. The first part is a pickle, the others are its out-of-band buffers (PEP 574). A
frame without parts is a piece of a larger frame: a length, and that many of the larger frame's bytes. So small frames
can be sent between the pieces of a large one.

Unpickling runs code that the bytes name, so only a peer that has sent the token is read (serve/transport/server.py).
"""

import pickle
import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from serve.errors import TooLarge
from serve.media.shared_pixels import pickling_for

HEAD, LENGTH = struct.Struct("<QI"), struct.Struct("<Q")
_SHORT = struct.Struct("<QIQ")
"""The head of a frame with one part, or of a piece."""
MAX_PARTS = 1024
MAX_BYTES = 4 * 2**30
PIECE_BYTES = 256 * 1024

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
