"""Limits on video files, their formats, and the choice of frames. Imports nothing heavy: the decoder process uses
it."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Caps:
    """Limits on a video file and on decoding it.

    bytes: of the file. frames: kept at most, each of at most `pixels` pixels (32 of 512 x 512 are 24 MiB).
    total_frames: in the file at most. side, area, least: of a frame, its longest side, area and shortest side in
    pixels. work: pixels decoded at most to reach the kept frames; of a longer video only key frames are decoded.
    animation_work: the same for a GIF or WEBP, which must be decoded as a whole and is rejected beyond. seconds:
    processor time for decoding. memory: bytes of address space for decoding.
    """

    bytes: int = 20 * 2**20
    frames: int = 32
    pixels: int = 512 * 512
    total_frames: int = 100_000
    side: int = 4096
    area: int = 4096 * 2304
    least: int = 8
    work: int = 3_000_000_000
    animation_work: int = 750_000_000
    seconds: float = 30.0
    memory: int = 384 * 2**20

    def fitted(self, width: float, height: float) -> tuple[int, int]:
        """Return width and height of a kept frame: its own, or shrunk in proportion to at most `pixels`."""
        scale = min(1.0, math.sqrt(self.pixels / (width * height)))
        return max(self.least, int(width * scale)), max(self.least, int(height * scale))


CAPS = Caps()

_STILLS = (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")  # still images in an MP4 container
_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")


def evenly(total: int, count: int) -> list[int]:
    """Return at most `count` of the indices 0..total-1, evenly spaced, first and last included.

    Equals numpy's linspace(0, total - 1, count, dtype=int), which vLLM's and LLaVA's loaders use, without its rounding
    errors.
    """
    if count >= total:
        return list(range(total))
    return [at * (total - 1) // (count - 1) for at in range(count)] if count > 1 else [0]


def sniff(data: bytes) -> str | None:
    """Return mp4 (also for MOV), webm, gif or webp by the file's first bytes; None for anything else."""
    if data[4:8] in _BOXES and data[8:12] not in _STILLS:
        return "mp4"
    if data.startswith(b"\x1aE\xdf\xa3"):
        return "webm"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    return "webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None
