"""Bytes from outside -> one checked image. The header is checked before any pixel is decoded."""

import base64
import binascii
import hashlib
import io
import logging
import struct
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import PIL.Image
from pydantic import GetPydanticSchema
from pydantic_core import core_schema

from serve.errors import BadRequest, TooLarge
from serve.media.shared_pixels import Handle, SharedPixels, handles_travel

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
STRIP = 2**19
"""Pixels that are copied at once."""
MAX_BYTES = 20 * 1024 * 1024
MAX_PIXELS = 40_000_000  # a 20 KB PNG can unfold to gigabytes: the header's size decides, before decoding
MAX_SIDE = 16_384
INLINE_BYTES = 1_500_000
"""Pixels of so many bytes travel as they are: copying them costs less than reading the file once more."""
MAX_SCANS = 32
"""A progressive JPEG has about ten. Each walks over all pixels for as little as 58 bytes: 200 over 36 MP took 9 s."""

# What Pillow raises for bytes it cannot make sense of. Warnings are among them where they are made errors.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, TypeError, LookupError, ArithmeticError, struct.error, Warning)
_BOMB = (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning)
# Set once: catch_warnings() swaps the filters of the whole process, and pictures are decoded in many threads at once.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.WARNING)  # at DEBUG it logs what cameras write of places and people

_TURNS = {  # EXIF orientation -> what brings the picture upright
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112


Pixels = np.ndarray[Any, np.dtype[np.uint8]]


class Image:
    """A picture as a person sees it: RGB, upright. pixels: uint8 [height, width, 3].

    digest: of the file it was read from, so that caches need not read the pixels; the same file gives the same pixels.
    One that is `unread` is still its file, a tenth of its pixels on the way to another process, and read when it is
    first looked at: that takes milliseconds to a second, and raises BadRequest where the file is damaged.
    Its pixels may be in memory that processes share (`shared`). One that is still elsewhere is its `url`; its file has
    to `arrive` before it is looked at. param: the field of the request that it came in.
    """

    def __init__(self, pixels: Pixels | None, digest: str | None = None) -> None:
        self._pixels = pixels
        self.shared: SharedPixels | None = None
        self.digest = digest
        self.url: str | None = None
        self.param = "image"
        self._file, self._area = b"", 0
        self._size = (0, 0)
        self._holders: list[Callable[[], None]] = []

    @classmethod
    def unread(cls, file: bytes, param: str, digest: str, area: int) -> "Image":
        """A file whose header was checked. area: its pixels' number."""
        image = cls(None, digest)
        image._file, image.param, image._area = file, param, area
        return image

    @classmethod
    def at(cls, url: str, param: str = "image") -> "Image":
        """One that is still elsewhere."""
        image = cls(None)
        image.url, image.param = url, param
        return image

    def share(self, pixels: SharedPixels) -> None:
        """Take these pixels for the picture's. They are closed when it is put away, where its file is there too."""
        self.shared = pixels

    def arrive(self, file: bytes) -> None:
        """What was at its `url`: from now on it is unread. Raises BadRequest or TooLarge for what is no picture."""
        self._area = _area(file, self.param)
        self._file, self.digest, self.url = file, _digest(file), None

    @property
    def pixels(self) -> Pixels:
        if self.shared is not None:
            return self.shared.pixels
        if self._pixels is None:
            assert self.url is None, "fetched before it is looked at"
            with _open(self._file, self.param) as picture:
                self._pixels = _load(picture, self.param)
        return self._pixels

    def held(self, given_back: Callable[[], None]) -> None:
        """Room was made for its pixels: what to call when they are put away."""
        self._holders.append(given_back)

    def put_away(self) -> None:
        """Its pixels, which are read again from the file should they be looked at again. Its size stays known."""
        if self._file and not self.left_to_read:
            self._size = (self.width, self.height)
            self._pixels = None
            if self.shared is not None:
                self.shared.close()
                self.shared = None
        while self._holders:
            self._holders.pop()()

    @property
    def left_to_read(self) -> int:
        """How many pixels wait to be read from the file; 0 where they have been."""
        return self._area if self._pixels is None and self.shared is None else 0

    @property
    def width(self) -> int:
        return self._size[0] or (self.shared.width if self.shared is not None else int(self.pixels.shape[1]))

    @property
    def height(self) -> int:
        return self._size[1] or (self.shared.height if self.shared is not None else int(self.pixels.shape[0]))

    def pil(self) -> PIL.Image.Image:
        return PIL.Image.fromarray(self.pixels)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle it as a handle of its shared pixels, or as its file or its pixels, whichever is better to send."""
        assert self.url is None, "other processes do not fetch"
        if self.shared is not None and handles_travel():
            return _at_handle, (self.shared.handle(), self.param, self.digest)
        if self._file and (self.left_to_read or len(self._file) < self.pixels.nbytes > INLINE_BYTES):
            return Image.unread, (self._file, self.param, self.digest, self._area)
        return Image, (self.pixels, self.digest)

    @classmethod
    def of(cls, picture: PIL.Image.Image) -> "Image":
        return cls(_rows(picture if picture.mode == "RGB" else picture.convert("RGB")))


def _at_handle(handle: Handle, param: str, digest: str | None) -> Image:
    image = Image(None, digest)
    image.param = param
    image.share(SharedPixels.open(handle))
    return image


def decode(data: bytes, param: str = "image") -> Image:
    """A PNG, JPEG, WEBP or GIF (first frame) as an Image. Raises BadRequest or TooLarge naming `param`.

    What the decoder itself complains about is not repeated: its words can carry addresses (CVE-2026-22778).
    """
    with _open(data, param) as picture:
        return Image(_load(picture, param), _digest(data))


def unread(data: bytes, param: str = "image") -> Image:
    """`decode`, but for the pixels: quick, and what is wrong with them is told when they are looked at."""
    return Image.unread(data, param, _digest(data), _area(data, param))


def from_url(url: str, param: str = "image") -> Image:
    """A data URL as an unread Image; an http(s) URL as one that is still there. Raises BadRequest or TooLarge."""
    if url[:8].lower().startswith(("http://", "https://")):
        return Image.at(url, param)
    return unread(from_data_url(url, param, "image", MAX_BYTES), param)


def _area(data: bytes, param: str) -> int:
    with _open(data, param) as picture:
        return picture.width * picture.height


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=20).hexdigest()


def _open(data: bytes, param: str) -> PIL.Image.Image:
    """The file with its header checked and no pixel decoded. Raises BadRequest or TooLarge."""
    if not data:
        raise BadRequest("The image is empty.", param=param, code="invalid_image")
    if len(data) > MAX_BYTES:
        megabytes = MAX_BYTES // 2**20
        raise TooLarge(f"The image file is larger than {megabytes} MB.", param=param, code="image_too_large")
    try:
        picture = PIL.Image.open(io.BytesIO(data), formats=FORMATS)
    except _BOMB:
        raise _too_many_pixels(param) from None
    except _DAMAGE:
        said = "The file is not a PNG, JPEG, WEBP or GIF image."
        raise BadRequest(said, param=param, code="invalid_image") from None
    width, height = picture.size
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        picture.close()
        raise _too_many_pixels(param, width, height)
    # Of progressive ones alone: counting takes 1 ns a byte. Where these bytes mean something else they are escaped.
    if "progression" in picture.info and data.count(b"\xff\xda") > MAX_SCANS:
        picture.close()
        raise TooLarge("The image is a JPEG of too many scans.", param=param, code="image_too_large")
    return picture


def _load(picture: PIL.Image.Image, param: str) -> Pixels:
    """Raises BadRequest."""
    try:
        picture.load()
        return Image.of(_on_white(_upright(_eight_bit(picture)))).pixels
    except (*_DAMAGE, *_BOMB):
        said = "The image is damaged or cut short and cannot be decoded."
        raise BadRequest(said, param=param, code="invalid_image") from None


def _rows(picture: PIL.Image.Image) -> Pixels:
    """A large picture strip by strip: what is copied is then still in the processor's cache, which halves the time."""
    width, height = picture.size
    strip = max(1, STRIP // width)
    if height <= strip:
        return np.asarray(picture)
    pixels = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, strip):
        pixels[top : top + strip] = np.asarray(picture.crop((0, top, width, min(height, top + strip))))
    return pixels


def from_data_url(url: str, param: str, kind: str, most: int) -> bytes:
    """The bytes in a data URL, at most `most`. kind: image or video. Raises BadRequest or TooLarge naming `param`."""
    example = {"image": "data:image/png;base64,...", "video": "data:video/mp4;base64,..."}[kind]
    wrong = f"invalid_{kind}_url"
    if url[:8].lower().startswith(("http://", "https://")):
        raise BadRequest(
            f"{kind.title()}s by URL are not fetched by this server: send the {kind} itself as a data URL "
            f"({example}) or as a multipart file.",
            param=param,
            code=wrong,
        )
    head, comma, body = url.partition(",")
    if not comma or not head[:5].lower() == "data:" or not head.lower().endswith(";base64"):
        raise BadRequest(f"The {kind} must be a data URL: {example}", param=param, code=wrong)
    if len(body) > most * 4 // 3 + 4:
        raise TooLarge(f"The {kind} is larger than {most // 2**20} MB.", param=param, code=f"{kind}_too_large")
    try:
        return base64.b64decode("".join(body.split()), validate=True)  # `base64 photo.jpg` breaks its lines
    except (binascii.Error, ValueError):
        raise BadRequest("The data URL is not valid base64.", param=param, code=wrong) from None


def _upright(picture: PIL.Image.Image) -> PIL.Image.Image:
    """Turned as its EXIF says. ImageOps.exif_transpose also writes the EXIF anew, and dies of some that it can read."""
    try:
        turn = _TURNS.get(picture.getexif().get(_ORIENTATION, 1))
    except _DAMAGE:  # a picture with a broken label is still a picture
        turn = None
    return picture if turn is None else picture.transpose(turn)


def _eight_bit(picture: PIL.Image.Image) -> PIL.Image.Image:
    """Pillow cuts 16-bit greys off at 255, so that nearly all come out white: keep the upper eight bits instead."""
    if not picture.mode.startswith("I;16"):
        return picture
    values = np.asarray(picture)
    grey = PIL.Image.fromarray((values >> 8).astype(np.uint8))
    clear = picture.info.get("transparency")
    if clear is not None:
        grey.putalpha(PIL.Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def _on_white(picture: PIL.Image.Image) -> PIL.Image.Image:
    """Transparent pictures are seen as on a white page, not on whatever colour hides under alpha 0."""
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        seen = picture.convert("RGBA")
        page = PIL.Image.new("RGBA", seen.size, "white")
        return PIL.Image.alpha_composite(page, seen)
    return picture


def _too_many_pixels(param: str, width: int | None = None, height: int | None = None) -> TooLarge:
    size = f" ({width} x {height})" if width else ""
    return TooLarge(
        f"The image has too many pixels{size}: at most {MAX_PIXELS // 1_000_000} megapixels "
        f"and {MAX_SIDE} pixels a side.",
        param=param,
        code="image_too_large",
    )


def _schema(_source: Any, _handler: Any) -> core_schema.CoreSchema:
    def load(value: Any) -> Image:
        if isinstance(value, Image):
            return value
        if isinstance(value, bytes):
            return unread(value)
        if isinstance(value, str):
            return from_url(value)
        raise BadRequest("The image must be a data URL or an https URL.", param="image", code="invalid_type")

    return core_schema.no_info_plain_validator_function(
        load,
        json_schema_input_schema=core_schema.str_schema(),
        serialization=core_schema.to_string_ser_schema(),
    )


Picture = Annotated[Image, GetPydanticSchema(_schema)]
"""A request's image field: a data URL, an https URL or uploaded bytes on the wire, an Image once validated.

Its file is then still to be fetched or read, by whoever has the request answered.
"""
