"""Videos for tests, encoded when needed. The grey of a frame encodes its number."""

import base64
import functools
import io
import struct
from typing import Any

import av
import numpy as np
import PIL.Image

CODECS: dict[str, tuple[str, dict[str, str]]] = {  # container, and what keeps the greys apart
    "libx264": ("mp4", {"crf": "10"}),
    "libx265": ("mp4", {"crf": "10", "x265-params": "log-level=none"}),
    "libsvtav1": ("mp4", {"svtav1-params": "lp=1"}),
    "mpeg4": ("mov", {"b": "4000000"}),
    "libvpx-vp9": ("webm", {}),
}
STEP = 4  # of grey, from one frame to the next


def pictures(count: int, width: int = 64, height: int = 48) -> list[PIL.Image.Image]:
    """Draw the frames: grey i * STEP, with a red left edge."""
    frames = []
    for at in range(count):
        picture = PIL.Image.new("RGB", (width, height), (at * STEP,) * 3)
        picture.paste("red", (0, 0, width // 4, height))
        frames.append(picture)
    return frames


@functools.cache
def film(count: int = 12, codec: str = "libx264", width: int = 64, height: int = 48, rate: int = 10) -> bytes:
    """Encode an MP4, MOV or WEBM, depending on the codec. rate: frames a second."""
    file = io.BytesIO()
    kind, options = CODECS[codec]
    with av.open(file, "w", format=kind) as container:
        stream: Any = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for picture in pictures(count, width, height):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def animation(count: int = 12, kind: str = "GIF", width: int = 64, height: int = 48, **options: Any) -> bytes:
    """Encode an animated GIF or WEBP with 40 ms a frame, unless options say otherwise."""
    first, *rest = pictures(count, width, height)
    file = io.BytesIO()
    first.save(file, kind, save_all=True, append_images=rest, **{"duration": 40, "lossless": True, **options})
    return file.getvalue()


def blinking(count: int, width: int = 4096, height: int = 2304) -> bytes:
    """Encode a GIF of large frames with a few bytes each: every frame changes a single pixel."""
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(3) + b"\xff\xff\xff"
    control = b"\x21\xf9\x04\x08" + struct.pack("<HB", 5, 0) + b"\0"
    pixel = b"\x02\x02\x4c\x01\0"  # clear, 1, end
    frames = [control + b"\x2c" + struct.pack("<HHHHB", at % width, 0, 1, 1, 0) + pixel for at in range(count)]
    return head + b"".join(frames) + b"\x3b"


def url(data: bytes, kind: str = "video/mp4") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def numbers(frames: Any) -> list[int]:
    """Return the frames' numbers, read from the grey at their right."""
    return [round(float(frame[4:-4, -12:-4].mean()) / STEP) for frame in frames]
