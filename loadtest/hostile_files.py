"""Builders of files that cost their reader far more than their size suggests: valid headers, hostile structure.

Each returns the bytes of a file that the reader of its format takes. Nothing is stored: all are made when needed.
"""

import io
import struct
import zlib
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import numpy as np
import PIL.Image

TURNED = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x05\0\0\0\0\0\0\0"
"""EXIF whose orientation, 5, transposes the picture."""


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    """Return one PNG chunk."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int,
    height: int,
    *,
    depth: int = 8,
    colour: int = 2,
    interlaced: bool = False,
    before: bytes = b"",
    behind: bytes = b"",
    empty_data: int = 0,
) -> bytes:
    """Return a PNG of one colour. colour: the header's colour type; before, behind: chunks round the pixels' data.

    empty_data: IDAT chunks without content between header and pixels.
    """
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    packer = zlib.compressobj(9)
    passes = _adam7(width, height) if interlaced else [(width, height)]
    parts = []
    for wide, high in passes:
        row = b"\0" + b"\x40" * ((wide * channels * depth + 7) // 8)
        parts += [packer.compress(row) for _ in range(high if wide else 0)]
    data = b"".join(parts) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    palette = chunk(b"PLTE", bytes(768)) if colour == 3 else b""
    body = chunk(b"IDAT") * empty_data + chunk(b"IDAT", data)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + palette + before + body + behind + chunk(b"IEND")


def _adam7(width: int, height: int) -> list[tuple[int, int]]:
    """Return the size of each pass of an interlaced PNG."""
    steps = [(0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4), (0, 2, 2, 4), (1, 2, 0, 2), (0, 1, 1, 2)]
    return [(-(-(width - x) // dx), -(-(height - y) // dy)) for x, dx, y, dy in steps]


def bomb(kind: bytes, head: bytes, size: int) -> bytes:
    """Return a PNG chunk (zTXt, iTXt, iCCP) that unfolds to `size` bytes. head: its bytes before the packed ones."""
    return chunk(kind, head + zlib.compress(bytes(size), 9))


def segment(marker: int, data: bytes = b"") -> bytes:
    """Return one JPEG segment."""
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data


def _tables() -> bytes:
    """Return one quantisation table, and Huffman tables whose only code, one bit long, stands for zero."""
    return segment(0xDB, b"\0" + bytes([16] * 64)) + huffman(b"\x00") + huffman(b"\x10")


def huffman(table: bytes = b"\x00") -> bytes:
    """Return a JPEG's Huffman table whose only code, one bit long, stands for zero."""
    return segment(0xC4, table + bytes([1] + [0] * 15) + b"\0")


def _frame(marker: int, width: int, height: int, components: int) -> bytes:
    sampled = b"".join(bytes([number, 0x11, 0]) for number in range(1, components + 1))
    return segment(marker, struct.pack(">BHHB", 8, height, width, components) + sampled)


def baseline_scans(width: int, height: int, scans: int, *, restart: int = 0, components: int = 3) -> bytes:
    """Return a baseline JPEG with a scan a component, again and again. restart: blocks between restart markers."""
    out = b"\xff\xd8" + _tables() + _frame(0xC0, width, height, components)
    out += segment(0xDD, struct.pack(">H", restart)) if restart else b""
    return out + b"".join(_scan(1 + at % components, 0, 63, 0) for at in range(scans)) + b"\xff\xd9"


def progressive_scans(width: int, height: int, scans: int) -> bytes:
    """Return a progressive grey JPEG: one scan of averages, then the same frequencies over and over."""
    out = b"\xff\xd8" + _tables() + _frame(0xC2, width, height, 1) + _scan(1, 0, 0, 0)
    return out + b"".join(_scan(1, 1 + at % 63, 1 + at % 63, 0) for at in range(scans)) + b"\xff\xd9"


def arithmetic_scans(width: int, height: int, scans: int) -> bytes:
    """Return a JPEG coded arithmetically, whose scans hold no data: each block is still decoded, bit by bit."""
    out = b"\xff\xd8" + _tables() + _frame(0xC9, width, height, 3)
    return out + b"".join(_scan(1 + at % 3, 0, 63, 0) for at in range(scans)) + b"\xff\xd9"


def _scan(component: int, first: int, last: int, bits: int) -> bytes:
    return segment(0xDA, bytes([1, component, 0x00, first, last, bits]))


def jpeg(width: int, height: int, segments: Iterable[bytes] = ()) -> bytes:
    """Return an ordinary JPEG with these segments at its head."""
    out = saved(PIL.Image.new("RGB", (width, height), (90, 140, 60)), "JPEG", quality=75)
    return out[:2] + b"".join(segments) + out[2:]


def exif_segments(large: int, small: int) -> list[bytes]:
    """Return `large` bytes of EXIF in segments, then `small` segments that continue it by one byte each."""
    full = segment(0xE1, b"Exif\0\0" + TURNED + bytes(65_000))
    return [full] * (large // 65_000) + [segment(0xE1, b"Exif\0\0\0")] * small


def gif(width: int, height: int, *, blocks: bytes = b"", frames: int = 1, side: int = 3) -> bytes:
    """Return a GIF: `blocks` at its head, then `frames` pictures of side x side, each 50 ms, at moving places."""
    out = [b"GIF89a", struct.pack("<HHBBB", width, height, 0x80, 0, 0), b"\0\0\0\xff\xff\xff", blocks]
    pixels = _codes(side * side)
    for at in range(frames):
        out.append(b"!\xf9\x04\x08" + struct.pack("<HB", 5, 0) + b"\0")
        place = at % max(1, width - side), at % max(1, height - side)
        out.append(b"," + struct.pack("<HHHHB", *place, side, side, 0) + pixels)
    return b"".join(out) + b";"


def _codes(count: int) -> bytes:
    """Return LZW data of `count` pixels of colour 1: before each a code that clears the table, three bits a code."""
    clear, pixel, end = 4, 1, 5
    codes = [clear, pixel] * count + [end]
    number = sum(code << 3 * at for at, code in enumerate(codes))
    data = number.to_bytes((3 * len(codes) + 7) // 8, "little")
    packed = b"".join(bytes([len(data[at : at + 255])]) + data[at : at + 255] for at in range(0, len(data), 255))
    return b"\x02" + packed + b"\0"


def long_comment(blocks: int) -> bytes:
    """Return a GIF comment in so many blocks of 255 bytes."""
    return b"!\xfe" + (b"\xff" + bytes([97] * 255)) * blocks + b"\0"


def webp_chunk(kind: bytes, data: bytes = b"") -> bytes:
    """Return one RIFF chunk."""
    return kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def _riff(body: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def _extended(width: int, height: int, flags: int) -> bytes:
    return webp_chunk(
        b"VP8X", bytes([flags, 0, 0, 0]) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    )


def webp_chunks(width: int, height: int, count: int) -> bytes:
    """Return a WEBP with `count` empty chunks of no known kind behind its picture."""
    plain = saved(PIL.Image.new("RGB", (width, height), (90, 140, 60)), "WEBP", lossless=True)
    return _riff(_extended(width, height, 0) + plain[12:] + webp_chunk(b"abcd") * count)


def webp_animation(width: int, height: int, frames: int) -> bytes:
    """Return an animated WEBP whose frames, 40 ms each, change two pixels of a large canvas."""
    pixel = saved(PIL.Image.new("RGBA", (2, 2), (200, 40, 60, 128)), "WEBP", lossless=True)[12:]
    fixed = bytes(3) + b"\1\0\0" * 2 + b"\x28\0\0\0"  # y, width and height less one, milliseconds, flags
    places = [(at % (width // 2 - 1)).to_bytes(3, "little") for at in range(frames)]
    frames_data = b"".join(webp_chunk(b"ANMF", place + fixed + pixel) for place in places)
    return _riff(_extended(width, height, 0x12) + webp_chunk(b"ANIM", bytes(6)) + frames_data)


def webp(width: int, height: int, *, alpha: bool = False, grain: bool = False, exif: bytes = b"") -> bytes:
    """Return a lossless WEBP. grain: of random bits, which is slow to decode; else of one colour."""
    if grain:
        bits = np.random.default_rng(5).integers(0, 2, (height, width), dtype=np.uint8) * 255
        picture = PIL.Image.fromarray(bits).convert("RGB")
    else:
        picture = PIL.Image.new("RGBA" if alpha else "RGB", (width, height), (90, 140, 60, 90)[: 4 if alpha else 3])
    return saved(picture, "WEBP", lossless=True, quality=0, method=0, exif=exif)


def saved(picture: PIL.Image.Image, kind: str, **options: Any) -> bytes:
    """Return the picture as a file of this format."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def video(width: int, height: int, frames: int, codec: str = "mpeg4", kind: str = "mp4") -> bytes:
    """Return a video in which each frame stands for itself: the same one, encoded once, is repeated."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format=kind) as container:
        stream: Any = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.codec_context.gop_size = width, height, "yuv420p", 1
        picture = np.full((height, width, 3), 90, np.uint8)
        packets = [*stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")), *stream.encode()]
        key = packets[0]
        data, base = bytes(key), key.time_base
        for at in range(frames):
            again = av.Packet(data)
            again.stream, again.time_base, again.is_keyframe = stream, base, True
            again.pts = again.dts = round(Fraction(at, 25) / base)
            container.mux(again)
    return file.getvalue()
