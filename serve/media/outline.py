"""Parse the structure of an image file in a bounded number of steps, before any decoder gets it. Imports no Pillow.

The cost of decoding depends on much more than the number of pixels: a JPEG of 60 KB may hold 6,000 scans that each pass
over all of them, or thousands of segments, profiles and texts before the first scan. Metadata is left out of what the
decoder gets, whatever its size; structures that no camera or program writes are rejected.
"""

import re
import struct
import zlib
from dataclasses import dataclass
from typing import Literal

Format = Literal["PNG", "JPEG", "WEBP", "GIF"]

MAX_MEGAPIXELS = 40  # a 20 KB PNG can decompress to gigabytes
MAX_PIXELS = MAX_MEGAPIXELS * 1_000_000
MAX_SIDE = 16_384
MAX_SCANS = 32
"""Scans of a JPEG. A progressive one has about ten. Each, of ten bytes or more, passes over all pixels: 200 over
36 megapixels took 9 s."""
MAX_PARTS = 8_192
"""Chunks, segments or blocks that are parsed, in at most 10 ms, 32 where each is a text: libpng writes 2,560 into a
file of 20 MB."""
MAX_FILL = 2**16
"""Bytes allowed between a JPEG's segments, where there should be none."""

QUICK_PIXELS = 500_000
QUICK_BYTES = 256 * 1024
QUICK_PARTS = 256
QUICK_SCANS = 12
"""Files within these limits are decoded on the event loop, as handing them to a process takes longer. NOTES.md has the
slowest known."""

_USUAL_SCANS = 10
_TEXT = 2**20
"""Bytes of a file's texts that are searched for an orientation, all together, packed and unpacked."""
_ORIENTATION = 0x0112
_NUMBERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}  # TIFF's integer types
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")  # neither a stuffed byte nor a restart
_SOF_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_TABLES = frozenset({0xC4, 0xCC, 0xDB, 0xDD, *_SOF_MARKERS})
_HUFFMAN, _PROGRESSIVE, _ARITHMETIC = (0xC0, 0xC1, 0xC2), (0xC2, 0xCA), (0xC9, 0xCA)
_SOI, _EOI, _SOS, _TEM, _APP0, _APP1, _APP14 = 0xD8, 0xD9, 0xDA, 0x01, 0xE0, 0xE1, 0xEE

Range = tuple[int, int]


class RejectedFile(Exception):
    """A file that is not decoded.

    why: a code by which the client's error message is chosen (`image.image_error`, `video.video_error`), such as
    damaged. size: width and height where they are the reason.
    """

    def __init__(self, why: str, size: tuple[int, int] | None = None) -> None:
        super().__init__(why)
        self.why = why
        self.size = size


@dataclass(frozen=True, slots=True)
class Outline:
    """The structure of an image file.

    stored: width and height before the EXIF orientation is applied. size: of the file in bytes. pieces: the byte ranges
    that the pixels depend on, in order. parts: the number of chunks, segments or blocks in them. orientation: EXIF's,
    1..8. scans: a JPEG's; the most there may be where the file was not parsed to its end. coding: a JPEG's
    start-of-frame marker. pixel_bytes: memory that decoding takes for each pixel, in Pillow and in the decoder.
    """

    format: Format
    stored: tuple[int, int]
    size: int
    pieces: tuple[Range, ...]
    parts: int
    orientation: int = 1
    scans: int = 1
    coding: int = 0
    pixel_bytes: int = 4

    @property
    def width(self) -> int:
        """Return the width of the upright image."""
        return self.stored[self.orientation > 4]

    @property
    def height(self) -> int:
        return self.stored[self.orientation <= 4]

    @property
    def area(self) -> int:
        return self.stored[0] * self.stored[1]

    @property
    def quick(self) -> bool:
        """Return whether the file can be decoded on the event loop without delaying other requests."""
        return (
            self.area <= QUICK_PIXELS
            and self.size <= QUICK_BYTES
            and self.parts <= QUICK_PARTS
            and self.scans <= QUICK_SCANS
            and self.coding not in _ARITHMETIC
        )

    @property
    def cost_s(self) -> float:
        """Estimate the processor seconds that decoding an ordinary file of this kind takes at most."""
        return self._seconds(min(self.scans, _USUAL_SCANS))

    @property
    def cpu_limit_s(self) -> int:
        """Return the processor seconds after which decoding is ended."""
        return int(2 + 4 * self._seconds(self.scans))

    def _seconds(self, scans: int) -> float:
        nanoseconds = {"PNG": 20, "GIF": 20, "WEBP": 50, "JPEG": 15 + 4 * scans}[self.format]
        if self.coding in _ARITHMETIC:
            nanoseconds *= 4
        return (self.area * nanoseconds + self.size * 40) / 1e9

    @property
    def peak_bytes(self) -> int:
        """Return the bytes of memory that decoding takes at most, with the file and the resulting RGB pixels."""
        return self.area * (self.pixel_bytes + 3) + 3 * self.size + 24 * 2**20


def read_outline(data: bytes, *, whole: bool = False) -> Outline:
    """Parse a PNG, JPEG, WEBP or GIF file. Raises RejectedFile.

    whole: count the scans also of a JPEG above QUICK_BYTES, which parses it to its end (20 MB take 50 ms).
    """
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        outline = _png(data)
    elif data.startswith(b"\xff\xd8\xff"):
        outline = _jpeg(data, whole=whole or len(data) <= QUICK_BYTES)
    elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        outline = _webp(data)
    elif data.startswith((b"GIF87a", b"GIF89a")):
        outline = _gif(data)
    else:
        raise RejectedFile("format")
    width, height = outline.stored
    if min(width, height) < 1:
        raise RejectedFile("damaged")
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise RejectedFile("pixels", (width, height))
    return outline


def pixel_file(data: bytes, outline: Outline) -> bytes:
    """Return the file without the parts that its pixels do not depend on: profiles, texts, EXIF, later frames."""
    if outline.pieces == ((0, len(data)),):
        return data
    body = b"".join([data[start:end] for start, end in outline.pieces])
    if outline.format == "WEBP":
        head = bytearray(body[:21])
        struct.pack_into("<I", head, 4, len(body) - 8)
        if body[12:16] == b"VP8X":
            head[20] &= ~0x2C & 0xFF  # no profile, EXIF or XMP follows
        return bytes(head) + body[21:]
    return body


class _Pieces:
    """Byte ranges of a file that are kept; adjacent ranges are merged."""

    def __init__(self, end: int) -> None:
        self.ranges: list[Range] = [(0, end)]
        self.count = 0
        self.steps = 0

    def step(self) -> None:
        """Count a parsed part. Raises RejectedFile after MAX_PARTS."""
        self.steps += 1
        if self.steps > MAX_PARTS:
            raise RejectedFile("parts")

    def keep(self, start: int, end: int) -> None:
        self.count += 1
        if self.ranges[-1][1] == start:
            start = self.ranges.pop()[0]
        self.ranges.append((start, end))


def _png(data: bytes) -> Outline:
    if data[12:16] != b"IHDR" or len(data) < 33:
        raise RejectedFile("damaged")
    width, height, depth, colour = struct.unpack(">IIBB", data[16:26])
    pieces, orientation, at, seen = _Pieces(33), _Orientation(), 33, set[bytes]()
    while at + 8 <= len(data):
        kind, end = data[at + 4 : at + 8], at + 12 + int.from_bytes(data[at : at + 4], "big")
        pieces.step()
        if kind == b"IDAT":
            pieces.keep(at, min(end, len(data)))
        elif kind == b"IEND" or b"IDAT" in seen:
            break
        elif kind in (b"PLTE", b"tRNS"):
            if kind not in seen:
                pieces.keep(at, min(end, len(data)))
        else:
            _read_orientation(orientation, kind, data[at + 8 : min(end - 4, at + 8 + _TEXT)])
        seen.add(kind)
        at = end
    _after_pixels(data, at, orientation, MAX_PARTS - pieces.steps)
    pixel_bytes = 4 if colour in (2, 4, 6) else depth // 8 or 1
    return Outline(
        "PNG",
        (width, height),
        len(data),
        tuple(pieces.ranges),
        pieces.count,
        orientation.orientation,
        pixel_bytes=pixel_bytes,
    )


def _after_pixels(data: bytes, at: int, orientation: "_Orientation", steps: int) -> None:
    """Look for an orientation in the chunks after a PNG's pixels; other chunks there are ignored."""
    for _ in range(steps):
        if at + 8 > len(data) or (kind := data[at + 4 : at + 8]) == b"IEND":
            return
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        _read_orientation(orientation, kind, data[at + 8 : min(end - 4, at + 8 + _TEXT)])
        at = end


def _read_orientation(orientation: "_Orientation", kind: bytes, body: bytes) -> None:
    """Set the orientation from a PNG chunk where it holds one."""
    if kind == b"eXIf":
        orientation.exif(body)
    elif kind == b"iTXt" and body.startswith(b"XML:com.adobe.xmp\0"):
        orientation.xmp(body[20:].split(b"\0", 2)[-1], packed=body[18:19] == b"\1")
    elif kind == b"zTXt" and body.startswith(b"Raw profile type exif\0"):
        orientation.raw_profile(body[23:], packed=True)
    elif kind == b"tEXt" and body.startswith(b"Raw profile type exif\0"):
        orientation.raw_profile(body[22:], packed=False)


def _jpeg(data: bytes, whole: bool) -> Outline:
    pieces, orientation, at = _Pieces(2), _Orientation(), 2
    frame: tuple[int, int, int, int] | None = None  # marker, height, width, components
    kept, fill = set[int](), MAX_FILL
    while (marker := _MARKER.search(data, at, at + fill)) is not None:
        fill -= marker.start() - at
        kind, at = data[marker.start() + 1], marker.end()
        pieces.step()
        if kind == _EOI:
            break
        if kind in (_SOI, _TEM):
            continue
        start, end = at - 2, at + int.from_bytes(data[at : at + 2], "big")
        if kind in _SOF_MARKERS:
            if frame is not None or len(data) < at + 8:
                raise RejectedFile("damaged")
            precision, *size, components = struct.unpack(">BHHB", data[at + 2 : at + 8])
            if precision != 8 or kind not in (*_HUFFMAN, *_ARITHMETIC):
                raise RejectedFile("kind")
            frame = (kind, size[0], size[1], components)
        elif kind == _SOS:
            if frame is None:
                raise RejectedFile("damaged")
            coding, height, width, components = frame
            several = coding in _PROGRESSIVE or data[at + 2 : at + 3] != bytes([components])
            scans = _scans(data, end, pieces) if whole else MAX_SCANS if several else 1
            pieces.keep(start, len(data))
            return Outline(
                "JPEG",
                (width, height),
                len(data),
                tuple(pieces.ranges),
                pieces.count,
                orientation.orientation,
                scans,
                coding,
                (4 if components > 1 else 1) + (2 * components if several or scans > 1 else 0),
            )
        if kind in _TABLES or (kind in (_APP0, _APP14) and kind not in kept):
            pieces.keep(start, end)
            kept.add(kind)
        elif kind == _APP1:
            body = data[at + 2 : end]
            if body.startswith(b"Exif\0\0"):
                orientation.exif(body)
            elif body.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
                orientation.xmp(body)
        at = end
    raise RejectedFile("damaged")


def _scans(data: bytes, at: int, pieces: _Pieces) -> int:
    """Count a JPEG's scans as its decoder does, from marker to marker. Raises RejectedFile above MAX_SCANS."""
    scans = 1
    while (marker := _MARKER.search(data, at)) is not None:
        kind, at = data[marker.start() + 1], marker.end()
        if kind == _EOI:
            break
        pieces.step()
        if kind in (_SOI, _TEM):
            continue
        if kind == _SOS:
            scans += 1
            if scans > MAX_SCANS:
                raise RejectedFile("scans")
        at += int.from_bytes(data[at : at + 2], "big")
    return scans


def _webp(data: bytes) -> Outline:
    kind = data[12:16]
    if kind == b"VP8X" and len(data) >= 30:
        stored = (1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little"))
    elif kind == b"VP8L" and len(data) >= 25 and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        stored = (1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
    elif kind == b"VP8 " and len(data) >= 30 and data[23:26] == b"\x9d\x01\x2a":
        stored = (int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF)
    else:
        raise RejectedFile("damaged")
    pieces, orientation, at, kept = _Pieces(12), _Orientation(), 12, set[bytes]()
    while at + 8 <= len(data):
        kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        end = at + 8 + size + (size & 1)
        pieces.step()
        if kind in (b"VP8X", b"ANIM", b"ANMF", b"ALPH", b"VP8 ", b"VP8L"):
            if kind not in kept:  # of an animation the first frame
                pieces.keep(at, min(end, len(data)))
            kept.add(kind)
        elif kind == b"EXIF":
            orientation.exif(data[at + 8 : min(at + 8 + size, at + _TEXT)])
        elif kind == b"XMP ":
            orientation.xmp(data[at + 8 : min(at + 8 + size, at + _TEXT)])
        at = end
    # Two canvases, the lossless decoder's buffer, the frame as bytes and Pillow's copy of it.
    return Outline(
        "WEBP", stored, len(data), tuple(pieces.ranges), pieces.count, orientation.orientation, pixel_bytes=17
    )


def _gif(data: bytes) -> Outline:
    if len(data) < 13:
        raise RejectedFile("damaged")
    width, height, flags = struct.unpack("<HHB", data[6:11])
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    pieces = _Pieces(min(at, len(data)))
    while at + 10 <= len(data) and data[at] != 0x3B:
        pieces.step()
        if data[at] == 0x2C:
            left, top, right, bottom = struct.unpack("<HHHH", data[at + 1 : at + 9])
            pieces.keep(at, len(data))
            stored = (max(width, left + right), max(height, top + bottom))
            return Outline("GIF", stored, len(data), tuple(pieces.ranges), pieces.count, pixel_bytes=3)
        start = at
        if data[at] == 0x21:
            at += 2
            while at < len(data) and data[at]:
                pieces.step()
                at += 1 + data[at]
            if data[start + 1] == 0xF9:
                pieces.keep(start, at + 1)
        at += 1
    raise RejectedFile("damaged")


class _Orientation:
    """An image's orientation: EXIF's, else XMP's, as Pillow reads it; 1 where neither is valid.

    Texts that cannot change it any more are skipped, as is what exceeds `_TEXT` bytes of all texts together.
    """

    def __init__(self) -> None:
        self._exif: int | None = None
        self._xmp: int | None = None
        self._read = False
        self._left = _TEXT

    @property
    def orientation(self) -> int:
        stated = self._xmp if self._exif is None else self._exif
        return stated if stated is not None and 1 <= stated <= 8 else 1

    def exif(self, body: bytes) -> None:
        """Read the orientation of the first EXIF block; later blocks are ignored."""
        if not self._read:
            self._read, self._exif = True, _exif_orientation(body.removeprefix(b"Exif\0\0"))

    def raw_profile(self, text: bytes, packed: bool) -> None:
        """Read the first EXIF block where it is a text of hexadecimal digits, as ImageMagick writes it."""
        if self._read or not self._left:
            return
        try:
            self.exif(bytes.fromhex("".join(self._take(text, packed).decode("ascii").split("\n")[3:])))
        except ValueError:
            return

    def xmp(self, text: bytes, packed: bool = False) -> None:
        if self._exif is not None or self._xmp is not None or not self._left:
            return
        if (stated := _XMP_ORIENTATION.search(self._take(text, packed))) is not None:
            self._xmp = int(stated[1])

    def _take(self, text: bytes, packed: bool) -> bytes:
        """Return as much of a text, unpacked, as is left of `_TEXT`; nothing where it is damaged."""
        text = text[: self._left]
        self._left -= len(text)
        if not packed:
            return text
        if not self._left:  # to zlib a limit of 0 is none
            return b""
        try:
            plain = zlib.decompressobj().decompress(text, self._left)
        except zlib.error:
            self._left = 0  # how much was unpacked before the damage is not known
            return b""
        self._left -= len(plain)
        return plain


def _exif_orientation(tiff: bytes) -> int | None:
    """Return the orientation in the first TIFF directory; None where it is absent or not a single integer.

    Entries beyond MAX_PARTS are not read.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None or len(tiff) < 8:
        return None
    (at,) = struct.unpack(f"{order}I", tiff[4:8])
    if at + 2 > len(tiff):
        return None
    entries = min(struct.unpack(f"{order}H", tiff[at : at + 2])[0], MAX_PARTS)
    stated: int | None = None
    for entry in range(at + 2, min(at + 2 + 12 * entries, len(tiff) - 11), 12):
        tag, kind, count = struct.unpack(f"{order}HHI", tiff[entry : entry + 8])
        if tag == _ORIENTATION and count == 1 and kind in _NUMBERS:
            (stated,) = struct.unpack_from(f"{order}{_NUMBERS[kind]}", tiff, entry + 8)
    return stated
