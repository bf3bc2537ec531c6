"""Python objects as frames on a byte stream. Large arrays are neither copied into the pickle nor out of it.

A frame: the number of parts (uint32), each part's length (uint64 each), the parts. The first part is a pickle, the
others are its out-of-band buffers (PEP 574). Unpickling runs what it is told to, so only a peer that has proved to be
one of us may be read (serve/rpc/server.py).
"""

import pickle
import struct
from typing import Any

COUNT, LENGTH = struct.Struct("<I"), struct.Struct("<Q")
MOST_PARTS = 1024


class Garbled(Exception):
    """What came is no frame."""


def encode(thing: Any) -> list[bytes | memoryview]:
    """The frame's bytes, in pieces to be written one after the other."""
    buffers: list[pickle.PickleBuffer] = []
    parts: list[bytes | memoryview] = [pickle.dumps(thing, protocol=5, buffer_callback=buffers.append)]
    parts += [buffer.raw() for buffer in buffers]
    head = COUNT.pack(len(parts)) + b"".join(LENGTH.pack(len(part)) for part in parts)
    return [head, *parts]


class Reader:
    """Bytes as they come -> the objects that are complete."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._lengths: list[int] = []
        self._body = bytearray()
        self._filled = 0

    def feed(self, data: bytes) -> list[Any]:
        """Raises Garbled where a frame cannot be one."""
        found, rest = [], memoryview(data)
        while rest:
            if not self._lengths:
                rest = self._read_head(rest)
                continue
            taken = min(len(rest), len(self._body) - self._filled)
            self._body[self._filled : self._filled + taken] = rest[:taken]
            self._filled, rest = self._filled + taken, rest[taken:]
            if self._filled == len(self._body):
                found.append(self._finish())
        return found

    def _read_head(self, rest: memoryview) -> memoryview:
        wanted = COUNT.size
        if len(self._head) >= wanted:
            wanted += LENGTH.size * self._parts()
        taken = min(len(rest), wanted - len(self._head))
        self._head += rest[:taken]
        if len(self._head) == wanted > COUNT.size:
            self._lengths = [length for (length,) in LENGTH.iter_unpack(self._head[COUNT.size :])]
            self._head.clear()
            self._body, self._filled = bytearray(sum(self._lengths)), 0
        return rest[taken:]

    def _parts(self) -> int:
        (parts,) = COUNT.unpack_from(self._head)
        if not 1 <= parts <= MOST_PARTS:
            raise Garbled(f"a frame of {parts} parts")
        return int(parts)

    def _finish(self) -> Any:
        whole, at, parts = memoryview(self._body), 0, []
        for length in self._lengths:
            parts.append(whole[at : at + length])
            at += length
        self._lengths, self._body = [], bytearray()
        return pickle.loads(parts[0], buffers=parts[1:])
