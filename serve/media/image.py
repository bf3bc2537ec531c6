"""Bytes from outside -> one checked image. The file's structure is checked before any pixel is decoded."""

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
from serve.media import pixels as decoding
from serve.media.outline import MAX_PARTS, MAX_PIXELS, MAX_SIDE, QUICK_BYTES, Outline, Refused, outline
from serve.media.shared_pixels import Handle, SharedPixels, handles_travel

MAX_BYTES = 20 * 1024 * 1024
MAX_HEAD = 200
"""Characters of a data URL before its data."""
INLINE_BYTES = 1_500_000
"""Pixels of so many bytes travel as they are: copying them costs less than reading the file once more."""
BLANKS = b" \t\n\r\v\f\x1c\x1d\x1e\x1f"
PIECE = 2**20
"""Characters of base64 that are decoded at once: other threads have a turn between two."""

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
T = TypeVar("T")


class Image:
    """A picture as a person sees it: RGB, upright. pixels: uint8 [height, width, 3].

    digest: of the file it was read from, so that caches need not read the pixels; the same file gives the same pixels.
    Of a file that is not small it is computed by `name`, which takes up to 25 ms. One that is `unread` is still its
    file, a tenth of its pixels on the way to another process: `Reading` decodes it, in a process of its own where it is
    not small; where it is looked at before, it is decoded on the spot. Its pixels may be in memory that processes share
    (`shared`). One that is still elsewhere is its `url`; its file has to `arrive` before it is looked at. param: the
    field of the request that it came in.
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
        self._holders: list[Callable[[], None]] = []

    @classmethod
    def unread(cls, file: bytes, param: str, digest: str | None, outline: Outline) -> "Image":
        """Return a picture in a file whose outline was checked."""
        image = cls(None, digest)
        image.file, image.param, image._outline = file, param, outline
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
        """Take what was at its `url`: from now on it is unread. Raises BadRequest or TooLarge."""
        self._outline = _outline(file, self.param)
        self.file, self.url = file, None
        self.digest = _digest(file) if len(file) <= QUICK_BYTES else None

    def name(self) -> None:
        """Compute the digest of a file that has none yet."""
        if self.digest is None and self.file:
            self.digest = _digest(self.file)

    @property
    def outline(self) -> Outline:
        """What is known of its file before it is decoded. Raises BadRequest or TooLarge."""
        if self._outline is None:
            self._outline = _outline(self.file, self.param)
        return self._outline

    @property
    def pixels(self) -> Pixels:
        if self.shared is not None:
            return self.shared.pixels
        if self._pixels is None:
            assert self.url is None, "fetched before it is looked at"
            self._pixels = _decoded(self.file, self.param, self.outline)
        return self._pixels

    def held(self, given_back: Callable[[], None]) -> None:
        """Room was made for its pixels: what to call when they are put away."""
        self._holders.append(given_back)

    def put_away(self) -> None:
        """Its pixels, which are read again from the file should they be looked at again. Its size stays known."""
        if self.file and not self.left_to_read:
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
        is_left = self.file and self._pixels is None and self.shared is None
        return self.outline.area if is_left else 0

    @property
    def width(self) -> int:
        return self._measured()[0]

    @property
    def height(self) -> int:
        return self._measured()[1]

    def _measured(self) -> tuple[int, int]:
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
        """Pickle it as a handle of its shared pixels, or as its file or its pixels, whichever is better to send."""
        assert self.url is None, "other processes do not fetch"
        if self.shared is not None and handles_travel():
            return _at_handle, (self.shared.handle(), self.param, self.digest)
        if self.file and (self.left_to_read or len(self.file) < self.pixels.nbytes > INLINE_BYTES):
            return Image.unread, (self.file, self.param, self.digest, self.outline)
        return Image, (self.pixels, self.digest)

    @classmethod
    def of(cls, picture: PIL.Image.Image) -> "Image":
        return cls(np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB")))


def _at_handle(handle: Handle, param: str, digest: str | None) -> Image:
    image = Image(None, digest)
    image.param = param
    image.share(SharedPixels.open(handle))
    return image


def decode(data: bytes, param: str = "image") -> Image:
    """A PNG, JPEG, WEBP or GIF (first frame) as an Image, on the spot. Raises BadRequest or TooLarge naming `param`.

    What the decoder itself complains about is not repeated: its words can carry addresses (CVE-2026-22778).
    """
    return Image(_decoded(data, param, _outline(data, param)), _digest(data))


def unread(data: bytes, param: str = "image") -> Image:
    """`decode`, but for the pixels: quick, and what is wrong with them is told when they are looked at."""
    image = Image.at("", param)
    image.arrive(data)
    return image


def from_url(url: str, param: str = "image") -> Image:
    """A data URL as an unread Image; an http(s) URL as one that is still there. Raises BadRequest or TooLarge."""
    if url[:8].lower().startswith(("http://", "https://")):
        return Image.at(url, param)
    return unread(from_data_url(url, param, "image", MAX_BYTES), param)


def refusal(refused: Refused, param: str) -> ServeError:
    """What a client is told of a file that was refused."""
    size = " ({} x {})".format(*refused.size) if refused.size else ""
    if refused.why in ("format", "damaged", "kind"):
        said = {
            "format": "The file is not a PNG, JPEG, WEBP or GIF image.",
            "kind": "The image is a JPEG of a kind that is not decoded here: lossless, or not of eight bits a colour.",
        }.get(refused.why, "The image is damaged or cut short and cannot be decoded.")
        return BadRequest(said, param=param, code="invalid_image")
    said = {
        "pixels": f"The image has too many pixels{size}: at most {MAX_PIXELS // 1_000_000} megapixels "
        f"and {MAX_SIDE} pixels a side.",
        "scans": "The image is a JPEG of too many scans.",
        "parts": f"The image file has more than {MAX_PARTS:,} parts.",
        "memory": "The image takes too much memory to decode.",
    }.get(refused.why, "The image takes too long to decode.")
    return TooLarge(said, param=param, code="image_too_large")


def _checked(data: bytes, param: str) -> None:
    """Raises BadRequest or TooLarge."""
    if not data:
        raise BadRequest("The image is empty.", param=param, code="invalid_image")
    if len(data) > MAX_BYTES:
        megabytes = MAX_BYTES // 2**20
        raise TooLarge(f"The image file is larger than {megabytes} MB.", param=param, code="image_too_large")


def _outline(data: bytes, param: str) -> Outline:
    """Raises BadRequest or TooLarge."""
    _checked(data, param)
    try:
        return outline(data)
    except Refused as refused:
        raise refusal(refused, param) from None


def _decoded(data: bytes, param: str, known: Outline) -> Pixels:
    """Return the file's pixels. Raises BadRequest or TooLarge."""
    try:
        found = known if known.size <= QUICK_BYTES else outline(data, whole=True)
        picture = decoding.loaded(data, found)
        parts = [np.asarray(strip) for strip in decoding.strips(picture, found.orientation)]
    except Refused as refused:
        raise refusal(refused, param) from None
    except decoding.DAMAGE:
        raise refusal(Refused("damaged"), param) from None
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=20).hexdigest()


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
    head, comma, _ = url[:MAX_HEAD].partition(",")
    if not comma or not head[:5].lower() == "data:" or not head.lower().endswith(";base64"):
        raise BadRequest(f"The {kind} must be a data URL: {example}", param=param, code=wrong)
    start = len(head) + 1
    letters = len(url) - start
    try:
        if letters > most * 4 // 3 + 4 and letters - sum(map(url.count, BLANKS.decode())) > most * 4 // 3 + 4:
            raise TooLarge(f"The {kind} is larger than {most // 2**20} MB.", param=param, code=f"{kind}_too_large")
        return _from_base64(url, start)
    except ValueError:
        raise BadRequest("The data URL is not valid base64.", param=param, code=wrong) from None


def _from_base64(text: str, start: int) -> bytes:
    """The bytes that `text` holds from `start` on. Raises ValueError for what is not base64 to its end.

    Blanks are left out: `base64 photo.jpg` breaks its lines. It goes piece by piece: other threads have a turn between
    two, and the text is never copied whole.
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
Picture = Annotated[Image, field(Image, unread, from_url, _WRONG_TYPE)]
"""A request's image field: a data URL, an https URL or uploaded bytes on the wire, an Image once validated.

Its file is then still to be fetched or read, by whoever has the request answered.
"""
