"""Every picture a person may send becomes upright RGB, everything else a sentence about what is wrong."""

import base64
import io
import resource
import struct
import sys
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageFile
import PIL.ImageOps
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve.errors import BadRequest, ServeError, TooLarge
from serve.media.image import MAX_BYTES, Image, decode_image, image_from_url
from serve.media.outline import MAX_SCANS, MAX_SIDE
from serve.tasks.request import Request

RED, GREEN, BLUE, YELLOW, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 255, 255)


def quarters(width: int = 32, height: int = 16) -> PIL.Image.Image:
    """Red, green over blue, yellow: no two ways of turning it look alike."""
    picture = PIL.Image.new("RGB", (width, height))
    for at, colour in enumerate((RED, GREEN, BLUE, YELLOW)):
        x, y = at % 2 * width // 2, at // 2 * height // 2
        picture.paste(colour, (x, y, x + width // 2, y + height // 2))
    return picture


def saved(picture: PIL.Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def corners(image: Image) -> list[tuple[int, ...]]:
    """Return the colours near the four corners, each channel rounded to 0 or 255, as a JPEG changes them."""
    left, right, top, bottom = image.width // 4, image.width * 3 // 4, image.height // 4, image.height * 3 // 4
    spots = ((top, left), (top, right), (bottom, left), (bottom, right))
    return [tuple(int(v > 127) * 255 for v in image.pixels[spot]) for spot in spots]


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, depth: int = 8, colour: int = 0, rows: bytes = b"", *extra: bytes) -> bytes:
    """A PNG whose header may promise more than its body holds."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    tail = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + tail


def refusal(data: bytes) -> ServeError:
    with pytest.raises(ServeError) as caught:
        decode_image(data)
    return caught.value


# --- what is accepted ---


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_every_format_is_read(kind: str) -> None:
    image = decode_image(saved(quarters(), kind))
    assert (image.width, image.height) == (32, 16)
    assert image.pixels.shape == (16, 32, 3) and image.pixels.dtype == np.uint8
    assert corners(image) == [RED, GREEN, BLUE, YELLOW]


def test_a_png_is_read_exactly() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    assert np.array_equal(decode_image(saved(PIL.Image.fromarray(pixels), "PNG")).pixels, pixels)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparent_pixels_become_white_whatever_their_colour(mode: str, kind: str) -> None:
    picture = PIL.Image.new(mode, (4, 4), (0,) * len(mode))
    picture.paste((0,) * (len(mode) - 1) + (255,), (0, 0, 2, 4))
    image = decode_image(saved(picture, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {})))
    assert tuple(image.pixels[2, 3]) == WHITE
    assert tuple(image.pixels[2, 0]) == (0, 0, 0)


def test_half_transparent_is_half_white() -> None:
    image = decode_image(saved(PIL.Image.new("RGBA", (2, 2), (255, 0, 0, 128)), "PNG"))
    assert tuple(image.pixels[0, 0]) == (255, 127, 127)


@pytest.mark.parametrize("transparency", [1, b"\xff\x00"], ids=["one colour", "alpha per colour"])
def test_a_palette_with_a_transparent_colour(transparency: int | bytes) -> None:
    picture = PIL.Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putpixel((1, 0), 1)
    for kind in ("PNG", "GIF") if isinstance(transparency, int) else ("PNG",):
        image = decode_image(saved(picture, kind, transparency=transparency))
        assert [tuple(p) for p in image.pixels[0]] == [RED, WHITE]


@pytest.mark.parametrize(
    ("mode", "colour", "clear"), [("RGB", RED, RED), ("L", 7, 7), ("1", 1, 1)], ids=["RGB", "L", "1"]
)
def test_a_colour_declared_transparent_without_an_alpha_channel(mode: str, colour: Any, clear: Any) -> None:
    picture = PIL.Image.new(mode, (2, 1), colour)
    picture.putpixel((0, 0), (0, 0, 0) if mode == "RGB" else 0)
    image = decode_image(saved(picture, "PNG", transparency=clear))
    assert [tuple(p) for p in image.pixels[0]] == [(0, 0, 0), WHITE]


def test_a_16_bit_grey_png_keeps_its_shades() -> None:
    values = np.linspace(0, 65535, 16).astype(np.uint16).reshape(4, 4)
    image = decode_image(saved(PIL.Image.fromarray(values), "PNG"))
    assert np.array_equal(image.pixels[..., 0], values >> 8)


def test_a_16_bit_grey_png_with_a_transparent_shade() -> None:
    values = np.array([[0x1234, 0x1235]], dtype=np.uint16)
    image = decode_image(saved(PIL.Image.fromarray(values), "PNG", transparency=0x1235))
    assert [tuple(p) for p in image.pixels[0]] == [(0x12,) * 3, WHITE]


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (4, 2), (6, 4)], ids=["RGB", "LA", "RGBA"])
def test_16_bit_colours_keep_their_upper_eight_bits(colour: int, channels: int) -> None:
    sample = [0x80FF] * (channels - (colour >= 4)) + [0xFFFF] * (colour >= 4)
    image = decode_image(png(1, 1, 16, colour, b"\x00" + struct.pack(f">{channels}H", *sample)))
    assert tuple(image.pixels[0, 0]) == (0x80, 0x80, 0x80)


def test_a_1_bit_png_is_black_and_white() -> None:
    picture = PIL.Image.new("1", (9, 3))
    picture.putpixel((8, 1), 1)
    image = decode_image(saved(picture, "PNG"))
    assert tuple(image.pixels[1, 8]) == WHITE and int(image.pixels.sum()) == 3 * 255


def test_a_cmyk_jpeg_has_its_colours() -> None:
    assert corners(decode_image(saved(quarters().convert("CMYK"), "JPEG", quality=95))) == [RED, GREEN, BLUE, YELLOW]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animation_as_an_image_gives_its_first_frame(kind: str) -> None:
    frames = [PIL.Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    data = saved(
        frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
    )
    assert corners(decode_image(data)) == [RED] * 4


def test_multi_picture_file_of_a_phone_is_decoded_as_jpeg() -> None:
    data = saved(quarters(), "MPO", save_all=True, append_images=[PIL.Image.new("RGB", (8, 8))])
    assert corners(decode_image(data)) == [RED, GREEN, BLUE, YELLOW]


ORIENTATIONS = {
    1: [RED, GREEN, BLUE, YELLOW],
    2: [GREEN, RED, YELLOW, BLUE],
    3: [YELLOW, BLUE, GREEN, RED],
    4: [BLUE, YELLOW, RED, GREEN],
    5: [RED, BLUE, GREEN, YELLOW],
    6: [BLUE, RED, YELLOW, GREEN],
    7: [YELLOW, GREEN, BLUE, RED],
    8: [GREEN, YELLOW, RED, BLUE],
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_images_are_turned_upright(kind: str, orientation: int) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    image = decode_image(saved(quarters(), kind, exif=exif))
    assert corners(image) == ORIENTATIONS[orientation]
    assert (image.width, image.height) == ((32, 16) if orientation < 5 else (16, 32))


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\x00\x00nonsense",
        b"Exif\x00\x00II*\x00\xff\xff\xff\xff",
        b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\xff\x01\x12",
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # as serve.media.image asks; pytest forgets it
def test_image_with_broken_exif_is_decoded(exif: bytes) -> None:
    assert corners(decode_image(saved(quarters(), "JPEG", exif=exif))) == [RED, GREEN, BLUE, YELLOW]


def test_an_orientation_that_is_no_number_is_ignored() -> None:
    entry = struct.pack("<HHI4s", 0x0112, 2, 4, b"six\x00")  # type 2: text
    exif = b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x01\x00" + entry + b"\x00" * 4
    assert corners(decode_image(saved(quarters(), "JPEG", exif=exif))) == [RED, GREEN, BLUE, YELLOW]


def test_exif_that_pillow_cannot_write_still_turns_the_image() -> None:
    """A camera's name that is a number makes ImageOps.exif_transpose raise AttributeError (Pillow 13)."""
    entries = struct.pack("<HHIf", 0x010F, 11, 1, 1.5) + struct.pack("<HHII", 0x0112, 3, 1, 6)
    exif = b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x02\x00" + entries + b"\x00" * 4
    data = saved(quarters(), "JPEG", exif=exif)
    with pytest.raises(AttributeError):
        PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data)))
    assert corners(decode_image(data)) == ORIENTATIONS[6]


def test_exif_is_not_kept() -> None:
    exif = PIL.Image.Exif()
    exif[0x010F] = "A camera with a serial number"
    exif[0x0112] = 6
    image = decode_image(saved(quarters(), "JPEG", exif=exif))
    assert not image.pil().getexif() and not image.pil().info
    assert b"serial" not in saved(image.pil(), "PNG")


@pytest.mark.slow
def test_a_photograph_of_twelve_megapixels() -> None:
    shade = np.linspace(0, 255, 4000).astype(np.uint8)
    photo = PIL.Image.fromarray(np.broadcast_to(shade[None, :, None], (3000, 4000, 3)))
    image = decode_image(saved(photo, "JPEG"))
    assert (image.width, image.height) == (4000, 3000)
    assert abs(int(image.pixels[1500, 2000, 0]) - 127) < 4


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_a_single_pixel(kind: str) -> None:
    image = decode_image(saved(PIL.Image.new("RGB", (1, 1), RED), kind))
    assert image.pixels.shape == (1, 1, 3)


# --- what is refused ---


@pytest.mark.parametrize(
    "data",
    [b"A text file, renamed.\n", b"%PDF-1.7", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\x00" * 64, b"\x89PNG"],
)
def test_file_of_another_format_is_refused_with_the_formats(data: bytes) -> None:
    error = refusal(data)
    assert isinstance(error, BadRequest) and (error.param, error.code) == ("image", "invalid_image")
    assert "PNG, JPEG, WEBP or GIF" in error.message


@pytest.mark.parametrize("kind", ["TIFF", "BMP", "ICO", "PPM", "EPS", "PDF"])
def test_other_formats_are_not_opened(kind: str) -> None:
    assert "PNG, JPEG, WEBP or GIF" in refusal(saved(quarters(), kind)).message


def test_an_empty_file() -> None:
    assert refusal(b"").message == "The image is empty."


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_a_file_cut_short_is_refused(kind: str) -> None:
    noise = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = saved(noise, kind)
    error = refusal(data[: len(data) // 2])
    assert isinstance(error, BadRequest) and error.code == "invalid_image"


def test_the_cap_on_bytes() -> None:
    error = refusal(b"\x89PNG" + b"\x00" * MAX_BYTES)
    assert isinstance(error, TooLarge) and error.status == 413 and "20 MB" in error.message


@pytest.fixture
def no_pixel_is_decoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails where pixels are decoded, or where memory grows as if they were (VmHWM: the most ever held)."""

    def load(self: Any) -> None:
        raise AssertionError("decoded before its size was judged")

    monkeypatch.setattr(PIL.ImageFile.ImageFile, "load", load)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 64 * (2**20 if sys.platform == "darwin" else 2**10), f"memory grew by {grown}"


@pytest.mark.parametrize(
    ("width", "height"), [(13_000, 13_000), (20_000, 20_000), (MAX_SIDE + 1, 1), (1, 2**31 - 1), (2**31 - 1, 2**31 - 1)]
)
def test_a_header_that_promises_too_much(no_pixel_is_decoded: None, width: int, height: int) -> None:
    error = refusal(png(width, height, depth=1))
    assert isinstance(error, TooLarge) and error.code == "image_too_large"
    assert "40 megapixels" in error.message


def test_an_animated_webp_that_promises_too_much(no_pixel_is_decoded: None) -> None:
    frames = [PIL.Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    data = bytearray(saved(frames[0], "WEBP", save_all=True, append_images=frames[1:]))
    at = data.index(b"VP8X") + 12
    data[at : at + 6] = (16_382).to_bytes(3, "little") * 2  # Pillow makes the decoder, canvas and all, when it opens it
    assert isinstance(refusal(bytes(data)), TooLarge)


@pytest.mark.parametrize("kind", ["GIF", "JPEG"])
def test_other_headers_that_promise_too_much(no_pixel_is_decoded: None, kind: str) -> None:
    data = bytearray(saved(PIL.Image.new("RGB", (8, 8)), kind))
    at, order = (6, "<") if kind == "GIF" else (data.index(b"\xff\xc0") + 5, ">")
    struct.pack_into(f"{order}HH", data, at, 60_000, 60_000)
    assert isinstance(refusal(bytes(data)), TooLarge)


@pytest.mark.parametrize("kind", ["JPEG", "MPO"])
def test_a_jpeg_that_walks_over_its_pixels_again_and_again(kind: str) -> None:
    data = saved(quarters(640, 320), "JPEG", progressive=True)
    scans = [at for at in range(len(data)) if data[at : at + 2] == b"\xff\xda"]
    assert decode_image(data).width == 640 and len(scans) < MAX_SCANS
    more = data[scans[-1] : -2] * MAX_SCANS
    if kind == "MPO":  # a JPEG that says that it holds several pictures: Pillow has another name for its format
        index = saved(quarters(640, 320), "MPO", save_all=True, append_images=[quarters()])
        at = index.index(b"\xff\xe2")
        data = data[:2] + index[at : at + 2 + int.from_bytes(index[at + 2 : at + 4], "big")] + data[2:]
    assert PIL.Image.open(io.BytesIO(data)).format == kind
    error = refusal(data[:-2] + more + data[-2:])
    assert isinstance(error, TooLarge) and "too many scans" in error.message


@pytest.mark.slow
def test_png_text_that_decompresses_to_gigabytes_is_bounded() -> None:
    bomb = zlib.compress(b"\x00" * (70 * 2**20), 9)
    data = png(1, 1, 8, 0, b"\x00\x00", chunk(b"zTXt", b"Comment\x00\x00" + bomb))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert decode_image(data).pixels.shape == (1, 1, 3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 2**10


# --- data URLs ---

DOT = base64.b64encode(saved(PIL.Image.new("RGB", (1, 1), RED), "PNG")).decode()


@pytest.mark.parametrize(
    "url",
    [
        f"data:image/png;base64,{DOT}",
        f"DATA:IMAGE/PNG;BASE64,{DOT}",
        f"data:image/png;charset=utf-8;base64,{DOT}",
        f"data:image/png;name=dot.png;base64,{DOT}",
        f"data:;base64,{DOT}",
        f"data:image/jpeg;base64,{DOT}",  # the bytes decide, not the label
        f"data:image/png;base64,{DOT[:40]}\r\n{DOT[40:]}\n",
        f"data:image/png;base64, {DOT}",
    ],
)
def test_data_urls(url: str) -> None:
    assert tuple(image_from_url(url).pixels[0, 0]) == RED


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("file:///etc/passwd", "must be a data URL"),
        ("", "must be a data URL"),
        ("data:image/png;base64", "must be a data URL"),
        (f"data:image/png,{DOT}", "must be a data URL"),
        (DOT, "must be a data URL"),
        (f"data:image/png;base64,{DOT}!", "not valid base64"),
        (f"data:image/png;base64,{DOT[:-1]}", "not valid base64"),
        ("data:image/png;base64,é", "not valid base64"),
        ("data:image/png;base64,\ud800", "not valid base64"),
        ("data:image/png;base64,", "is empty"),
        ("data:image/png;base64,AAAA", "PNG, JPEG, WEBP or GIF"),
    ],
)
def test_malformed_data_url_is_refused(url: str, says: str) -> None:
    with pytest.raises(BadRequest, match=says) as caught:
        image_from_url(url, param="messages")
    assert caught.value.param == "messages"
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_the_cap_on_a_data_url_comes_before_its_decoding() -> None:
    with pytest.raises(TooLarge, match="20 MB"):
        image_from_url("data:image/png;base64," + "!" * (MAX_BYTES * 4 // 3 + 8))


def test_an_image_field_takes_bytes_a_data_url_or_an_image_and_nothing_else() -> None:
    dot = Request(image=f"data:image/png;base64,{DOT}").image  # type: ignore[arg-type]
    assert np.array_equal(Request(image=base64.b64decode(DOT)).image.pixels, dot.pixels)  # type: ignore[arg-type]
    assert Request(image=dot).image is dot
    for wrong in (None, 3, ["x"], {"url": "x"}):
        with pytest.raises(BadRequest, match="data URL"):
            Request(image=wrong)  # type: ignore[arg-type]


# --- whatever the bytes, an Image or one of two errors ---

SEEDS = [
    *(saved(quarters(), kind) for kind in ("PNG", "JPEG", "WEBP", "GIF")),
    saved(quarters().convert("P"), "PNG", transparency=b"\x00\x80\xff"),
    saved(
        quarters(),
        "JPEG",
        exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x03\x00\x01\x00\x00\x00\x06\x00" + b"\x00" * 6,
    ),
    saved(quarters(), "WEBP", save_all=True, append_images=[quarters().rotate(180)]),
    saved(quarters(), "GIF", save_all=True, append_images=[quarters().rotate(180)]),
    saved(quarters(), "PNG", save_all=True, append_images=[quarters().rotate(180)]),
    saved(quarters(), "MPO", save_all=True, append_images=[quarters().rotate(180)]),
    saved(PIL.Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16)), "PNG", transparency=3),
]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid file with bytes changed, removed, inserted or doubled; a PNG's checksums may be corrected to match."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(["over", "cut", "put", "double"]))
        if kind == "over":
            data[at : at + 4] = draw(st.binary(min_size=1, max_size=4))
        elif kind == "cut":
            del data[at : at + draw(st.integers(1, 64))]
        elif kind == "put":
            data[at:at] = draw(st.binary(min_size=1, max_size=16))
        else:
            data[at:at] = data[at : at + 32]
    return mended(bytes(data)) if draw(st.booleans()) else bytes(data)


def mended(data: bytes) -> bytes:
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    whole, at = bytearray(data), 8
    while at + 12 <= len(whole):
        end = at + 8 + int.from_bytes(whole[at : at + 4], "big")
        if end + 4 > len(whole):
            break
        whole[end : end + 4] = struct.pack(">I", zlib.crc32(whole[at + 4 : end]))
        at = end + 4
    return bytes(whole)


@settings(
    max_examples=3 * settings.default.max_examples,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(mutated())
def test_mutated_files_are_read_or_refused(data: bytes) -> None:
    try:
        image = decode_image(data)
    except (BadRequest, TooLarge) as error:
        assert error.param == "image"
        assert "0x" not in error.message and "PIL" not in error.message and "BytesIO" not in error.message
        assert error.__suppress_context__ or error.__context__ is None  # what the decoder said is not logged as a cause
    else:
        assert image.pixels.ndim == 3 and image.pixels.shape[2] == 3 and image.pixels.dtype == np.uint8
        assert image.width > 0 and image.height > 0


@given(st.text(max_size=80))
def test_any_text_as_an_image_is_refused_or_read(text: str) -> None:
    for url in (text, f"data:image/png;base64,{text}"):
        with pytest.raises((BadRequest, TooLarge)):
            _ = image_from_url(url).pixels
