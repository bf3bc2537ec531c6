"""Gives an image as a file that a server takes: the client's own, or one that is encoded once for all servers."""

import asyncio
import io
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

import PIL.Image

from serve.media.budget import Lease
from serve.media.decoding import MediaDecoder
from serve.media.image import Image, Pixels

ImageType = Literal["png", "jpeg", "webp", "gif"]
DEFAULT_IMAGE_TYPES: tuple[ImageType, ...] = ("png", "jpeg", "webp")
LOSSLESS_PIXELS = 2_000_000
"""Images of more pixels are encoded as JPEG where the server takes it: a photo's PNG is larger than servers accept."""
JPEG_QUALITY = 95
HEADER_BYTES = 65_536
ROOM_S = 60.0
"""Seconds to wait for memory, where the request's deadline is not sooner."""


@dataclass
class _Encoded:
    """An encoded file, with the lease on its memory. users: requests that hold it."""

    lease: Lease
    users: int = 0
    file: bytes = b""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class ImageFiles:
    """The files of the images that are being sent. For use on one event loop."""

    def __init__(self, decoder: MediaDecoder) -> None:
        self.decoder = decoder
        self._encoded: dict[tuple[int, str], _Encoded] = {}

    @asynccontextmanager
    async def file(self, image: Image, types: Collection[ImageType]) -> AsyncIterator[tuple[str, bytes]]:
        """Yield the media type and the bytes of a file of one of `types`, for use in the block.

        The client's own file is taken where it is upright; servers do not agree on EXIF's orientation. Raises as
        `MediaDecoder.decode_image`.
        """
        if image.file and image.outline.orientation == 1 and image.outline.format.lower() in types:
            yield f"image/{image.outline.format.lower()}", image.file
            return
        kind = "jpeg" if "jpeg" in types and (_is_photo(image) or "png" not in types) else "png"
        key = id(image), kind  # the image lives as long as its users do
        encoded = self._encoded.setdefault(key, _Encoded(Lease(self.decoder.budget)))
        encoded.users += 1
        try:
            async with encoded.lock:
                if not encoded.file:
                    await self._encode(image, kind, encoded)
            yield f"image/{kind}", encoded.file
        finally:
            encoded.users -= 1
            if not encoded.users:
                encoded.lease.release()
                del self._encoded[key]

    async def _encode(self, image: Image, kind: str, encoded: _Encoded) -> None:
        deadline = asyncio.get_running_loop().time() + ROOM_S
        async with self.decoder.decode_image(image):
            await encoded.lease.grow(3 * image.width * image.height + HEADER_BYTES, deadline, image.param)
            encoded.file = await asyncio.to_thread(_write, image.pixels, kind)
        encoded.lease.shrink(len(encoded.file))


def _is_photo(image: Image) -> bool:
    from_jpeg = bool(image.file) and image.outline.format == "JPEG"
    return from_jpeg or image.width * image.height > LOSSLESS_PIXELS


def _write(pixels: Pixels, kind: str) -> bytes:
    out = io.BytesIO()
    options = {"compress_level": 1} if kind == "png" else {"quality": JPEG_QUALITY, "subsampling": 0}
    PIL.Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()
