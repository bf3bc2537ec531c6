"""Bytes from outside -> one checked image. The header is checked before any pixel is decoded."""

import base64
import binascii
import io
import warnings
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import PIL.Image
import PIL.ImageOps
from pydantic import GetPydanticSchema
from pydantic_core import core_schema

from serve.errors import BadRequest, TooLarge

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
MAX_BYTES = 20 * 1024 * 1024
MAX_PIXELS = 40_000_000  # a 20 KB PNG can unfold to gigabytes: the header's size decides, before decoding
MAX_SIDE = 16_384


@dataclass(frozen=True, eq=False)
class Image:
    """A picture as a person sees it: RGB, upright. pixels: uint8 [height, width, 3]."""

    pixels: np.ndarray[Any, np.dtype[np.uint8]]

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    def pil(self) -> PIL.Image.Image:
        return PIL.Image.fromarray(self.pixels)

    @classmethod
    def of(cls, picture: PIL.Image.Image) -> "Image":
        return cls(np.asarray(picture.convert("RGB")))


def decode(data: bytes, param: str = "image") -> Image:
    """A PNG, JPEG, WEBP or GIF (first frame) as an Image. Raises BadRequest or TooLarge naming `param`.

    What the decoder itself complains about is not repeated: its words can carry addresses (CVE-2026-22778).
    """
    if not data:
        raise BadRequest("The image is empty.", param=param, code="invalid_image")
    if len(data) > MAX_BYTES:
        megabytes = MAX_BYTES // 2**20
        raise TooLarge(f"The image file is larger than {megabytes} MB.", param=param, code="image_too_large")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the size is judged below, by our own cap
            picture = PIL.Image.open(io.BytesIO(data), formats=FORMATS)
    except PIL.Image.DecompressionBombError:
        raise _too_many_pixels(param) from None
    except (OSError, SyntaxError, ValueError, EOFError):
        raise BadRequest("The file is not a PNG, JPEG, WEBP or GIF image.", param=param, code="invalid_image") from None
    with picture:
        width, height = picture.size
        if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
            raise _too_many_pixels(param, width, height)
        try:
            upright = PIL.ImageOps.exif_transpose(picture)
            return Image.of(_on_white(upright))
        except (OSError, SyntaxError, ValueError, EOFError, TypeError, PIL.Image.DecompressionBombError):
            raise BadRequest(
                "The image is damaged or cut short and cannot be decoded.", param=param, code="invalid_image"
            ) from None


def decode_data_url(url: str, param: str = "image") -> Image:
    """`data:image/png;base64,...` as an Image."""
    if url[:8].lower().startswith(("http://", "https://")):
        raise BadRequest(
            "Images by URL are not fetched by this server: send the image itself as a data URL "
            "(data:image/png;base64,...) or as a multipart file.",
            param=param,
            code="invalid_image_url",
        )
    head, comma, body = url.partition(",")
    if not comma or not head[:5].lower() == "data:" or not head.lower().endswith(";base64"):
        raise BadRequest(
            "The image must be a data URL: data:image/png;base64,...", param=param, code="invalid_image_url"
        )
    if len(body) > MAX_BYTES * 4 // 3 + 4:
        raise TooLarge(f"The image is larger than {MAX_BYTES // 2**20} MB.", param=param, code="image_too_large")
    try:
        data = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest("The data URL is not valid base64.", param=param, code="invalid_image_url") from None
    return decode(data, param)


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
            return decode(value)
        if isinstance(value, str):
            return decode_data_url(value)
        raise BadRequest("The image must be a data URL.", param="image", code="invalid_type")

    return core_schema.no_info_plain_validator_function(
        load,
        json_schema_input_schema=core_schema.str_schema(),
        serialization=core_schema.to_string_ser_schema(),
    )


Picture = Annotated[Image, GetPydanticSchema(_schema)]
"""A request's image field: a data URL or uploaded bytes on the wire, an Image once validated.

Validating decodes, which takes milliseconds to a second: validate off the event loop.
"""
