"""serve.media.outline: what a file's structure says of it, in bounded steps, before a decoder sees it."""

import dataclasses
import functools
import io
import json
import struct
import time
import types
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
import pytest

from serve.errors import ServeError
from serve.media import outline as module
from serve.media.image import decode_image
from serve.media.outline import MAX_PARTS, MAX_SCANS, QUICK_BYTES, QUICK_SCANS, RejectedFile, pixel_file, read_outline
from tests.media.test_image import ORIENTATIONS, chunk, corners, quarters, saved


def segment(marker: int, body: bytes = b"") -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


def baseline(scans: int, width: int = 64, height: int = 64, first: bytes = b"", between: bytes = b"") -> bytes:
    """A JPEG whose three colours have scans of their own, again and again; `between` stands before each scan."""
    out = b"\xff\xd8" + first + segment(0xDB, b"\0" + bytes([16] * 64))
    out += segment(0xC0, struct.pack(">BHHB", 8, height, width, 3) + bytes([1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0]))
    table = bytes([1] + [0] * 15) + b"\0"
    out += segment(0xC4, b"\x00" + table) + segment(0xC4, b"\x10" + table)
    out += b"".join(between + segment(0xDA, bytes([1, 1 + at % 3, 0x00, 0, 63, 0])) for at in range(scans))
    return out + b"\xff\xd9"


def early(data: bytes, *extra: bytes) -> bytes:
    """A PNG with more chunks behind its header."""
    return data[:33] + b"".join(extra) + data[33:]


def late(data: bytes, *extra: bytes) -> bytes:
    """A PNG with more chunks behind its pixels."""
    return data[:-12] + b"".join(extra) + data[-12:]


def refused(data: bytes, whole: bool = True) -> str:
    with pytest.raises(RejectedFile) as caught:
        read_outline(data, whole=whole)
    return caught.value.why


BARE = b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 0x0112, 3, 1, 6)
TIFF = BARE + bytes(4)  # no further directory
RAW = b"\nexif\n      42\n" + (b"Exif\0\0" + TIFF).hex().encode()  # as ImageMagick writes it
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


@functools.cache
def graph() -> bytes:
    return json.dumps({str(at): {"class_type": "KSampler", "inputs": {"seed": at}} for at in range(40_000)}).encode()


@functools.cache
def profile(packed: bool = False) -> bytes:
    plain = np.random.default_rng(7).integers(0, 64, 3_000_000, dtype=np.uint8).tobytes()
    return zlib.compress(plain, 1) if packed else plain


# What is read although it carries a lot


@pytest.mark.parametrize(
    "make",
    [
        lambda: early(saved(quarters(), "PNG"), chunk(b"iCCP", b"Display\0\0" + profile(packed=True))),
        lambda: early(saved(quarters(), "PNG"), chunk(b"iCCP", b"Display\0\0" + profile(packed=True)[:-9])),
        lambda: early(saved(quarters(), "PNG"), chunk(b"tEXt", b"prompt\0" + graph())),
        lambda: late(saved(quarters(), "PNG"), chunk(b"zTXt", b"workflow\0\0" + zlib.compress(graph()))),
        lambda: early(saved(quarters(), "PNG"), *[chunk(b"iTXt", b"part\0\0\0\0\0" + graph()[:200_000])] * 60),
        lambda: early(saved(quarters(), "PNG"), *[chunk(b"prVt", b"")] * 2_000),
        lambda: early(saved(quarters(), "PNG"), chunk(b"eXIf", b"II*\0\x08\0\0\0\xff\xff" + bytes(9_000_000))),
        lambda: saved(quarters(), "JPEG", icc_profile=profile()),
        lambda: saved(quarters(), "JPEG", comment=b"c" * 65_000),
        lambda: saved(quarters(), "WEBP", lossless=True, icc_profile=profile(), xmp=graph()),
        lambda: saved(quarters(), "GIF", comment=b"c" * 500_000),
    ],
    ids=[
        *("png profile", "png broken profile", "png tEXt", "png zTXt behind", "png 60 iTXt", "png private", "png exif"),
        *("jpeg profile", "jpeg comment", "webp profile", "gif comment"),
    ],
)
def test_metadata_of_any_size_is_left_out_and_not_rejected(make: Callable[[], bytes]) -> None:
    data = make()
    assert corners(decode_image(data)) == corners(decode_image(saved(quarters(), "PNG")))
    assert len(pixel_file(data, read_outline(data))) < 20_000


@pytest.mark.parametrize("size", [1, 7, 60_000])
def test_a_jpeg_with_thousands_of_exif_segments_is_read_in_time(size: int) -> None:
    """Pillow joins them, each time copying what it has."""
    extra = segment(0xE1, b"Exif\0\0" + bytes(size)) * min(3_000, 12_000_000 // size)
    data = saved(quarters(), "JPEG")
    began = time.process_time()
    image = decode_image(data[:2] + extra + data[2:])
    assert time.process_time() - began < 1 and corners(image) == corners(decode_image(data))


def test_file_without_metadata_is_passed_on_unchanged() -> None:
    for kind, options in (("PNG", {}), ("WEBP", {}), ("GIF", {}), ("JPEG", {"progressive": True})):
        data = saved(quarters(), kind, **options)
        assert pixel_file(data, read_outline(data)) is data or kind in ("GIF", "PNG")


# Which way up


@pytest.mark.parametrize(
    "data",
    [
        early(saved(quarters(), "PNG"), chunk(b"eXIf", TIFF)),
        late(saved(quarters(), "PNG"), chunk(b"eXIf", TIFF)),
        early(saved(quarters(), "PNG"), chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)),
        early(saved(quarters(), "PNG"), chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP))),
        early(saved(quarters(), "PNG"), chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(RAW))),
        saved(quarters(), "JPEG", exif=b"Exif\0\0" + TIFF),
        saved(
            quarters(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHHI", 0x0112, 3, 1, 6, 0, 0)
        ),
        saved(quarters(), "JPEG", xmp=XMP),
        saved(quarters(), "WEBP", exif=b"Exif\0\0" + TIFF),
        saved(quarters(), "WEBP", xmp=XMP.replace(b'="6"', b">6<")),
    ],
    ids=[
        *("png eXIf", "png eXIf behind", "png xmp", "png packed xmp", "png raw profile"),
        *("jpeg", "jpeg big-endian", "jpeg xmp", "webp", "webp xmp"),
    ],
)
def test_orientation_is_read_in_every_place_where_pillow_reads_its_own(data: bytes) -> None:
    outline = read_outline(data)
    assert (outline.orientation, outline.width, outline.height) == (6, 16, 32)
    assert PIL.Image.open(io.BytesIO(data)).getexif()[0x0112] == 6
    assert corners(decode_image(data)) == ORIENTATIONS[6]


@pytest.mark.parametrize(
    "tiff",
    [
        b"",
        b"II*\0",
        b"II*\0\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\xff\xff",
        b"MM*\0" + BARE[4:],
        BARE[:-3],
        BARE[:-4] + struct.pack("<I", 9),
        BARE[:12] + struct.pack("<HII", 3, 2, 6),
        BARE[:12] + struct.pack("<HII", 5, 1, 6),
    ],
)
def test_an_orientation_that_cannot_be_used_is_ignored(tiff: bytes) -> None:
    assert read_outline(early(saved(quarters(), "PNG"), chunk(b"eXIf", tiff))).orientation == 1


def test_an_orientation_behind_thousands_of_entries_is_not_read() -> None:
    """A directory can have 65,535 of them."""
    for others, orientation in ((1_000, 6), (MAX_PARTS, 1)):
        tiff = b"II*\0\x08\0\0\0" + struct.pack("<H", others + 1) + bytes(12 * others) + BARE[10:] + bytes(4)
        assert read_outline(early(saved(quarters(), "PNG"), chunk(b"eXIf", tiff))).orientation == orientation


# How much of its texts is read


@dataclasses.dataclass
class Work:
    """The work of reading texts. streams: that zlib unpacked; unpacked, searched: bytes."""

    streams: int = 0
    unpacked: int = 0
    searched: int = 0


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    """Count the bytes that are unpacked, those before damage too, and those that are searched."""
    work, begin, pattern = Work(), zlib.decompressobj, module._XMP_ORIENTATION

    def decompress(packed: bytes, most: int) -> bytes:
        assert most > 0, "zlib takes 0 for no limit"
        work.streams += 1
        stream, plain = begin(), b""
        for at in range(0, len(packed), 64):
            if len(plain) < most:
                piece = stream.decompress(stream.unconsumed_tail + packed[at : at + 64], most - len(plain))
                plain, work.unpacked = plain + piece, work.unpacked + len(piece)
        return plain

    def search(text: bytes) -> object:
        work.searched += len(text)
        return pattern.search(text)

    monkeypatch.setattr(zlib, "decompressobj", lambda: types.SimpleNamespace(decompress=decompress))
    monkeypatch.setattr(module, "_XMP_ORIENTATION", types.SimpleNamespace(search=search))
    return work


LONG = b"z" * 2**20
PACKED = zlib.compress(LONG)
PROFILE, PACKED_XMP = b"Raw profile type exif\0\0", b"XML:com.adobe.xmp\0\1\0\0\0"


@pytest.mark.parametrize(
    "make",
    [
        lambda: early(saved(quarters(), "PNG"), *[chunk(b"zTXt", PROFILE + zlib.compress(b"\n\n\n" + LONG))] * 40),
        lambda: early(saved(quarters(), "PNG"), *[chunk(b"iTXt", PACKED_XMP + PACKED)] * 40),
        lambda: early(saved(quarters(), "PNG"), *[chunk(b"iTXt", PACKED_XMP + PACKED[:-9] + bytes(9))] * 40),
        lambda: early(saved(quarters(), "PNG"), *[chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + LONG)] * 10),
        lambda: late(saved(quarters(), "PNG"), *[chunk(b"iTXt", PACKED_XMP + PACKED)] * 40),
        lambda: saved(quarters(), "WEBP") + (b"XMP " + struct.pack("<I", len(LONG)) + LONG) * 10,
        lambda: (
            b"\xff\xd8"
            + segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + LONG[:65_000]) * 100
            + saved(quarters(), "JPEG")[2:]
        ),
    ],
    ids=["png profile", "png packed", "png damaged", "png plain", "png behind", "webp", "jpeg"],
)
def test_texts_of_a_file_are_read_up_to_a_mebibyte_together(make: Callable[[], bytes], work: Work) -> None:
    assert read_outline(make()).orientation == 1
    assert 2**19 < max(work.unpacked, work.searched) <= 2**20


def test_texts_are_not_unpacked_where_the_orientation_is_known(work: Work) -> None:
    profile, xmp = chunk(b"zTXt", PROFILE + zlib.compress(RAW)), chunk(b"iTXt", PACKED_XMP + zlib.compress(XMP))
    for first, streams in ((chunk(b"eXIf", TIFF), 0), (profile, 1), (xmp, 2)):
        work.streams = 0
        assert read_outline(early(saved(quarters(), "PNG"), first, *[profile, xmp] * 20)).orientation == 6
        assert work.streams == streams


def test_orientation_in_a_later_text_is_read() -> None:
    other = chunk(b"iTXt", PACKED_XMP + zlib.compress(LONG[: 2**18]))
    xmp = chunk(b"iTXt", PACKED_XMP + zlib.compress(XMP))
    assert read_outline(early(saved(quarters(), "PNG"), other, other, xmp)).orientation == 6


# What is refused, and why


@pytest.mark.parametrize(
    "make",
    [
        lambda: baseline(MAX_SCANS + 1),
        lambda: baseline(20_000),
        lambda: baseline(500, between=b"\xff" * 200),
        lambda: baseline(60, between=segment(0xFE, b"\xff\xd9")),
        lambda: baseline(60, between=b"\xff\xd0\xff\x00"),
        lambda: baseline(60, first=segment(0xE1, b"Exif\0\0" + TIFF)),
    ],
    ids=["33", "20,000", "filled", "an end that is none", "restarts", "behind EXIF"],
)
def test_a_jpeg_of_too_many_scans_is_refused_whatever_its_kind(make: Callable[[], bytes]) -> None:
    data = make()
    assert refused(data) == "scans"
    with pytest.raises(ServeError, match="too many scans") as caught:
        decode_image(data)
    assert caught.value.status == 413


def test_second_image_behind_a_jpeg_is_ignored() -> None:
    data = saved(quarters(), "JPEG", progressive=True)
    assert read_outline(data + data * 5, whole=True).scans == read_outline(data, whole=True).scans <= QUICK_SCANS


@pytest.mark.parametrize(
    "make",
    [
        lambda: early(saved(quarters(), "PNG"), *[chunk(b"tEXt", b"a\0b")] * MAX_PARTS),
        lambda: b"\x89PNG\r\n\x1a\n" + saved(quarters(), "PNG")[8:33] + chunk(b"IDAT", b"") * (MAX_PARTS + 1),
        lambda: b"\xff\xd8" + segment(0xEC) * (MAX_PARTS + 1) + saved(quarters(), "JPEG")[2:],
        lambda: b"\xff\xd8" + segment(0xE1, b"Exif\0\0a") * (MAX_PARTS + 1) + saved(quarters(), "JPEG")[2:],
        lambda: saved(quarters(), "WEBP")[:12] + b"junk\0\0\0\0" * (MAX_PARTS + 1),
        lambda: b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0, 0, 0) + b"!\xfe\x01a\0" * (MAX_PARTS + 1),
        lambda: b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0, 0, 0) + b"!\xfe" + b"\x01a" * (MAX_PARTS + 1) + b"\0",
    ],
    ids=["png texts", "png empty", "jpeg empty", "jpeg exif", "webp", "gif comments", "gif comment"],
)
def test_a_file_of_too_many_parts_is_refused_in_time(make: Callable[[], bytes]) -> None:
    data = make()
    began = time.process_time()
    assert refused(data) in ("parts", "damaged")
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize("filler", [b"\xff", b"\xff\x00", b"\x00"])
def test_a_jpeg_that_is_filler_costs_no_time(filler: bytes) -> None:
    data = b"\xff\xd8\xff" + filler * (19_000_000 // len(filler))
    began = time.process_time()
    assert refused(data, whole=False) == "damaged"
    assert time.process_time() - began < 0.1


@pytest.mark.parametrize("marker", [0xC3, 0xC5, 0xCB])
def test_a_jpeg_of_a_kind_that_is_not_decoded_is_refused_as_that(marker: int) -> None:
    data = saved(quarters(), "JPEG")
    at = data.index(b"\xff\xc0")
    assert refused(data[: at + 1] + bytes([marker]) + data[at + 2 :]) == "kind"
    twelve = data[: at + 4] + b"\x0c" + data[at + 5 :]
    with pytest.raises(ServeError, match="lossless"):
        decode_image(twelve)


# What is quick


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_ordinary_image_is_quick(kind: str) -> None:
    assert read_outline(saved(quarters(640, 480), kind)).quick


@pytest.mark.parametrize(
    "make",
    [
        lambda: saved(quarters(1000, 600), "PNG"),
        lambda: early(saved(quarters(), "PNG"), chunk(b"tEXt", b"a\0" + bytes(QUICK_BYTES))),
        lambda: b"\x89PNG\r\n\x1a\n" + saved(quarters(), "PNG")[8:33] + chunk(b"IDAT", b"") * 300,
        lambda: baseline(QUICK_SCANS + 1),
        lambda: baseline(3, 800, 700),
    ],
    ids=["pixels", "bytes", "chunks", "scans", "pixels in scans"],
)
def test_expensive_file_is_not_quick(make: Callable[[], bytes]) -> None:
    data = make()
    assert not read_outline(data).quick


@pytest.mark.slow
def test_peak_memory_grows_with_the_decoders_buffers() -> None:
    def peak(kind: str, mode: str = "RGB", **options: Any) -> int:
        return read_outline(saved(PIL.Image.new(mode, (3000, 2000)), kind, **options)).peak_bytes

    assert peak("PNG", "L") < peak("PNG") < peak("WEBP")
    assert peak("JPEG") < peak("JPEG", progressive=True)
    assert peak("PNG", "RGBA") < 20 * 6_000_000  # what it took before
