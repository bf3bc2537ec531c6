"""Images from files, data URLs and http(s) URLs. A file's structure is checked before any pixel is decoded."""

import hashlib
import io
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import numpy as np
import PIL.Image
import pybase64
from pydantic import GetPydanticSchema
from pydantic_core import core_schema

from serve.errors import BadRequest, ServeError, TooLarge
from serve.media import pillow_decoder
from serve.media.outline import MAX_MEGAPIXELS, MAX_PARTS, MAX_SIDE, QUICK_BYTES, Outline, RejectedFile, read_outline
from serve.media.shared_pixels import Handle, SharedPixels, handles_travel

MAX_BYTES = 20 * 1024 * 1024
MAX_HEAD = 200
"""Characters that a data URL may have before its data."""
INLINE_BYTES = 1_500_000
"""Pixels of up to this many bytes are pickled as they are: a copy costs less than decoding the file again."""
BLANKS = b" \t\n\r\v\f\x1c\x1d\x1e\x1f"
PIECE = 2**20
"""Characters of base64 that are decoded at once, so that other threads can run in between."""

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
T = TypeVar("T")


class Image:
    """An RGB image, upright. pixels: uint8 [height, width, 3].

    An image passes through up to three states. Remote (`at_url`): only its `url` is known, until `set_file`. Undecoded
    (`undecoded`): its file was checked and is kept; the file is a tenth of the pixels' size when it is pickled.
    Decoded: `pixels` are in memory, in `shared` where other processes can map them. `MediaDecoder` decodes images,
    large ones in a process of their own; `pixels` of an undecoded image decodes it in the calling thread.

    digest: of the file, by which caches know the image without its pixels. `undecoded_image` computes it for small
    files, `compute_digest` for others, in up to 25 ms. param: the request's field that the image came in, for errors.
    """

    def __init__(self, pixels: Pixels | None, digest: str | None = None) -> None:
        self._pixels = pixels
        self.shared: SharedPixels | None = None
        self.digest = digest
        self.url: str | None = None
        self.param = "image"
        self.file = b""
        self._size = (0, 0)
        self._outline: Outline | None = None
        self._callbacks: list[Callable[[], None]] = []

    @classmethod
    def undecoded(cls, file: bytes, param: str, digest: str | None, outline: Outline) -> "Image":
        """Return an image whose file was checked, in `outline`, and is decoded later."""
        image = cls(None, digest)
        image.file, image.param, image._outline = file, param, outline
        return image

    @classmethod
    def at_url(cls, url: str, param: str = "image") -> "Image":
        """Return an image that has to be fetched from `url`."""
        image = cls(None)
        image.url, image.param = url, param
        return image

    def share(self, pixels: SharedPixels) -> None:
        """Set the image's pixels. `release_pixels` closes them where the image has a file to decode again."""
        self.shared = pixels

    def set_file(self, file: bytes) -> None:
        """Check and set the file that was fetched from `url`. Raises BadRequest or TooLarge."""
        self._outline = _outline(file, self.param)
        self.file, self.url = file, None
        self.digest = file_digest(file) if len(file) <= QUICK_BYTES else None

    def compute_digest(self) -> None:
        """Compute the digest of the image's file where it is not known yet."""
        if self.digest is None and self.file:
            self.digest = file_digest(self.file)

    @property
    def outline(self) -> Outline:
        """Return the structure of the image's file. Raises BadRequest or TooLarge."""
        if self._outline is None:
            self._outline = _outline(self.file, self.param)
        return self._outline

    @property
    def pixels(self) -> Pixels:
        if self.shared is not None:
            return self.shared.pixels
        if self._pixels is None:
            assert self.url is None, "an image is fetched before its pixels are used"
            self._pixels = _decode(self.file, self.param, self.outline)
        return self._pixels

    def on_release(self, callback: Callable[[], None]) -> None:
        """Call `callback` once when the pixels are released."""
        self._callbacks.append(callback)

    def release_pixels(self) -> None:
        """Free the pixels where they can be decoded from the file again. Width and height stay known."""
        if self.file and not self.undecoded_pixels:
            self._size = (self.width, self.height)
            self._pixels = None
            if self.shared is not None:
                self.shared.close()
                self.shared = None
        while self._callbacks:
            self._callbacks.pop()()

    @property
    def undecoded_pixels(self) -> int:
        """Return the number of pixels in the file that are not decoded; 0 where they are."""
        undecoded = self.file and self._pixels is None and self.shared is None
        return self.outline.area if undecoded else 0

    @property
    def width(self) -> int:
        return self._width_and_height()[0]

    @property
    def height(self) -> int:
        return self._width_and_height()[1]

    def _width_and_height(self) -> tuple[int, int]:
        if self._size != (0, 0):
            return self._size
        if self._pixels is not None:
            return int(self._pixels.shape[1]), int(self._pixels.shape[0])
        if self.shared is not None:
            return self.shared.width, self.shared.height
        return self.outline.width, self.outline.height

    def pil(self) -> PIL.Image.Image:
        return PIL.Image.fromarray(self.pixels)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle a handle of the shared pixels, or the file, or the pixels, whichever is cheapest for the receiver."""
        assert self.url is None, "other processes do not fetch"
        if self.shared is not None and handles_travel():
            return _at_handle, (self.shared.handle(), self.param, self.digest)
        if self.file and (self.undecoded_pixels or len(self.file) < self.pixels.nbytes > INLINE_BYTES):
            return Image.undecoded, (self.file, self.param, self.digest, self.outline)
        return Image, (self.pixels, self.digest)

    @classmethod
    def of(cls, image: PIL.Image.Image) -> "Image":
        return cls(np.asarray(image if image.mode == "RGB" else image.convert("RGB")))


def _at_handle(handle: Handle, param: str, digest: str | None) -> Image:
    image = Image(None, digest)
    image.param = param
    image.share(SharedPixels.open(handle))
    return image


def decode_image(data: bytes, param: str = "image") -> Image:
    """Decode a PNG, JPEG, WEBP or GIF (first frame) in this thread. Raises BadRequest or TooLarge naming `param`.

    The decoder's own messages are not passed on: they can hold addresses (CVE-2026-22778).
    """
    return Image(_decode(data, param, _outline(data, param)), file_digest(data))


def undecoded_image(data: bytes, param: str = "image") -> Image:
    """Return the image in a file without decoding it. Raises BadRequest or TooLarge for a malformed structure.

    Damage in the pixels' data is found, and raised, when they are decoded.
    """
    image = Image.at_url("", param)
    image.set_file(data)
    return image


def image_from_url(url: str, param: str = "image") -> Image:
    """Return the undecoded image in a data URL, or one to fetch from an http(s) URL. Raises BadRequest or TooLarge."""
    if url[:8].lower().startswith(("http://", "https://")):
        return Image.at_url(url, param)
    return undecoded_image(data_url_bytes(url, param, "image", MAX_BYTES), param)


def image_error(refused: RejectedFile, param: str, max_megapixels: float = MAX_MEGAPIXELS) -> ServeError:
    """Return the client's error for a rejected image file. max_megapixels: the limit that it passed."""
    size = " ({} x {})".format(*refused.size) if refused.size else ""
    if refused.why in ("format", "damaged", "kind"):
        message = {
            "format": "The file is not a PNG, JPEG, WEBP or GIF image.",
            "kind": "The image is a JPEG of a kind that is not decoded here: lossless, or not of eight bits a colour.",
        }.get(refused.why, "The image is damaged or cut short and cannot be decoded.")
        return BadRequest(message, param=param, code="invalid_image")
    message = {
        "pixels": f"The image has too many pixels{size}: at most {max_megapixels:g} megapixels "
        f"and {MAX_SIDE} pixels a side.",
        "scans": "The image is a JPEG of too many scans.",
        "parts": f"The image file has more than {MAX_PARTS:,} parts.",
        "memory": "The image takes too much memory to decode.",
    }.get(refused.why, "The image takes too long to decode.")
    return TooLarge(message, param=param, code="image_too_large")


def _check_size(data: bytes, param: str) -> None:
    """Raise BadRequest for an empty file, TooLarge for one above MAX_BYTES."""
    if not data:
        raise BadRequest("The image is empty.", param=param, code="invalid_image")
    if len(data) > MAX_BYTES:
        megabytes = MAX_BYTES // 2**20
        raise TooLarge(f"The image file is larger than {megabytes} MB.", param=param, code="image_too_large")


def _outline(data: bytes, param: str) -> Outline:
    """Read the file's structure. Raises BadRequest or TooLarge."""
    _check_size(data, param)
    try:
        return read_outline(data)
    except RejectedFile as refused:
        raise image_error(refused, param) from None


def _decode(data: bytes, param: str, checked: Outline) -> Pixels:
    """Return the file's pixels. Raises BadRequest or TooLarge."""
    try:
        outline = checked if checked.size <= QUICK_BYTES else read_outline(data, whole=True)
        image = pillow_decoder.load(data, outline)
        parts = [np.asarray(strip) for strip in pillow_decoder.strips(image, outline.orientation)]
    except RejectedFile as refused:
        raise image_error(refused, param) from None
    except pillow_decoder.DAMAGE:
        raise image_error(RejectedFile("damaged"), param) from None
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def file_digest(data: bytes) -> str:
    """Return the BLAKE2b digest of a file, in hex."""
    return hashlib.blake2b(data, digest_size=20).hexdigest()


def data_url_bytes(url: str, param: str, kind: str, max_bytes: int) -> bytes:
    """Return the bytes in a data URL. kind: image or video. Raises BadRequest or TooLarge naming `param`."""
    example = {"image": "data:image/png;base64,...", "video": "data:video/mp4;base64,..."}[kind]
    code = f"invalid_{kind}_url"
    if url[:8].lower().startswith(("http://", "https://")):
        raise BadRequest(
            f"{kind.title()}s by URL are not fetched by this server: send the {kind} itself as a data URL "
            f"({example}) or as a multipart file.",
            param=param,
            code=code,
        )
    head, comma, _ = url[:MAX_HEAD].partition(",")
    if not comma or not head[:5].lower() == "data:" or not head.lower().endswith(";base64"):
        raise BadRequest(f"The {kind} must be a data URL: {example}", param=param, code=code)
    start = len(head) + 1
    letters = len(url) - start
    try:
        if letters > max_bytes * 4 // 3 + 4 and letters - sum(map(url.count, BLANKS.decode())) > max_bytes * 4 // 3 + 4:
            raise TooLarge(f"The {kind} is larger than {max_bytes // 2**20} MB.", param=param, code=f"{kind}_too_large")
        return _from_base64(url, start)
    except ValueError:
        raise BadRequest("The data URL is not valid base64.", param=param, code=code) from None


def _from_base64(text: str, start: int) -> bytes:
    """Decode the base64 in `text` from `start` on. Raises ValueError where it is malformed.

    Blanks are skipped: `base64 photo.jpg` breaks its lines. Text is decoded in pieces, so that it is never copied as a
    whole and other threads can run in between.
    """
    data, rest = io.BytesIO(), b""
    for at in range(start, len(text), PIECE):
        piece = rest + text[at : at + PIECE].encode("ascii").translate(None, BLANKS)
        end = max(0, len(piece) - 1) // 4 * 4  # at least one letter is left for the end, where padding may stand
        if b"=" in piece[max(0, end - 2) : end]:
            raise ValueError("padding before the end")
        data.write(pybase64.b64decode(piece[:end], validate=True))
        rest = piece[end:]
    data.write(pybase64.b64decode(rest, validate=True))
    return data.getvalue()


def field(
    kind: type[T], from_file: Callable[[bytes], T], from_text: Callable[[str], T], refusal: BadRequest
) -> GetPydanticSchema:
    """Return the schema of a field that is a text or uploaded bytes on the wire, and a `kind` once validated.

    refusal: raised for a value of another type.
    """

    def load(value: Any) -> T:
        if isinstance(value, kind):
            return value
        if isinstance(value, bytes):
            return from_file(value)
        if isinstance(value, str):
            return from_text(value)
        raise BadRequest(refusal.message, param=refusal.param, code=refusal.code)

    schema = core_schema.no_info_plain_validator_function(
        load,
        json_schema_input_schema=core_schema.str_schema(),
        serialization=core_schema.to_string_ser_schema(),
    )
    return GetPydanticSchema(lambda _source, _handler: schema)


_WRONG_TYPE = BadRequest("The image must be a data URL or an https URL.", param="image", code="invalid_type")
ImageField = Annotated[Image, field(Image, undecoded_image, image_from_url, _WRONG_TYPE)]
"""A request's image field: a data URL, an https URL or uploaded bytes on the wire, an Image once validated.

It is fetched and decoded later, when the request is answered.
"""
