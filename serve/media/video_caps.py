"""What is a film, how much of it is taken, and which of its frames. Light: known also to what cannot decode one."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Caps:
    """bytes: of the file; frames: at most so many are kept, each of at most `pixels` pixels (32 of 512 x 512 weigh
    24 MiB); film_frames: of the film; side, area, least: of its frames in pixels, the longest side, the product and
    the shortest side; work: so many pixels are decoded to find the frames that are wanted, of a film with more only
    its key frames; animation_work: the same of a GIF or WEBP, which has to be decoded whole, so that one with more is
    refused; seconds, memory: what decoding may take, of processor time and in bytes of address space."""

    bytes: int = 20 * 2**20
    frames: int = 32
    pixels: int = 512 * 512
    film_frames: int = 100_000
    side: int = 4096
    area: int = 4096 * 2304
    least: int = 8
    work: int = 3_000_000_000
    animation_work: int = 750_000_000
    seconds: float = 30.0
    memory: int = 384 * 2**20

    def fitted(self, width: float, height: float) -> tuple[int, int]:
        """The size at which a frame is kept: its own, or smaller in the same proportions."""
        scale = min(1.0, math.sqrt(self.pixels / (width * height)))
        return max(self.least, int(width * scale)), max(self.least, int(height * scale))


CAPS = Caps()

_STILLS = (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")  # pictures in an MP4's clothes
_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")


def evenly(total: int, count: int) -> list[int]:
    """At most `count` of the indices 0..total-1, evenly spaced, first and last included.

    numpy's linspace(0, total - 1, count, dtype=int), as vLLM's and LLaVA's own loaders choose, without rounding errors.
    """
    if count >= total:
        return list(range(total))
    return [at * (total - 1) // (count - 1) for at in range(count)] if count > 1 else [0]


def sniff(data: bytes) -> str | None:
    """mp4 (MOV too), webm, gif or webp, by the file's first bytes; None for anything else."""
    if data[4:8] in _BOXES and data[8:12] not in _STILLS:
        return "mp4"
    if data.startswith(b"\x1aE\xdf\xa3"):
        return "webm"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    return "webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None
