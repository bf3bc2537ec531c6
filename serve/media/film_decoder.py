"""A film's frames, decoded: run by a media process (`serve.media.decoder`) alone, within its limits. Knows no numpy."""

import io
import os
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import av
import PIL.Image
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from serve.media.outline import Refused
from serve.media.video_caps import Caps, evenly

# Demuxers are named, not guessed: a guess may be a playlist, which opens other files. No protocol is allowed either.
DEMUXERS = {"mp4": "mov", "webm": "matroska"}
CODECS = ("h264", "hevc", "vp8", "vp9", "libdav1d", "av1", "mpeg4", "mjpeg")
THREADS = 2
UNTIMED_MS = 100  # how long browsers show an animation's frame that names no time, or next to none
_TURNS = {  # counterclockwise, as FFmpeg counts
    90: PIL.Image.Transpose.ROTATE_90,
    180: PIL.Image.Transpose.ROTATE_180,
    270: PIL.Image.Transpose.ROTATE_270,
}
_DAMAGE = (
    *(av.FFmpegError, OSError, SyntaxError, ValueError, EOFError, TypeError, LookupError, ArithmeticError),
    struct.error,
)


class Reel:
    """The frames that are kept: all of one size, RGB, each with its seconds from the start. write: takes the pixels of
    each."""

    def __init__(self, caps: Caps, write: Callable[[bytes], None]) -> None:
        self.caps = caps
        self.write = write
        self.size: tuple[int, int] | None = None
        self.times: list[float] = []

    def check(self, width: int, height: int) -> None:
        """Raises Refused for a film whose frames have a size that is not taken."""
        if width * height > self.caps.area or max(width, height) > self.caps.side:
            raise Refused("huge", (width, height))
        if min(width, height) < self.caps.least:
            raise Refused("tiny", (width, height))

    def add(self, picture: PIL.Image.Image, time: float) -> None:
        if self.size is None:
            self.size = self.caps.fitted(*picture.size)
        if picture.size != self.size:
            picture = picture.resize(self.size, PIL.Image.Resampling.BICUBIC, reducing_gap=3.0)
        self.write(picture.convert("RGB").tobytes())
        self.times.append(round(time, 3))


class Index:
    """What the film's packets say about its frames, before any is decoded. Times are in the stream's own unit."""

    def __init__(self, container: InputContainer, stream: VideoStream, caps: Caps) -> None:
        ends: dict[int, int] = {}
        keys: list[int] = []
        for packet in container.demux(stream):
            if packet.is_corrupt:  # the file ends in the middle of it
                raise Refused("damaged")
            if packet.pts is None or packet.size == 0 or packet.is_discard:
                continue
            ends[packet.pts] = packet.pts + (packet.duration or 0)
            if packet.is_keyframe:
                keys.append(packet.pts)
            if len(ends) > caps.film_frames:
                raise Refused("long")
        if not ends or stream.time_base is None:
            raise Refused("damaged")
        stamps = sorted(ends)
        self.unit, self.start, self.end = stream.time_base, stamps[0], ends[stamps[-1]]
        self.keys_only = len(stamps) * stream.codec_context.width * stream.codec_context.height > caps.work
        chosen = sorted(keys) if self.keys_only else stamps
        self.wanted = [chosen[at] for at in evenly(len(chosen), caps.frames)]

    def seconds(self, stamp: int) -> float:
        """The time from the film's first frame."""
        return float((stamp - self.start) * self.unit)


def animation(data: bytes, reel: Reel) -> float:
    """Keep frames of an animated GIF or WEBP, as on a white page. Returns its length in seconds. Raises Refused."""
    with PIL.Image.open(io.BytesIO(data), formats=("GIF", "WEBP")) as moving:
        reel.check(*moving.size)
        total: int = getattr(moving, "n_frames", 1)
        if total > reel.caps.film_frames:
            raise Refused("long")
        if total * moving.width * moving.height > reel.caps.animation_work:
            raise Refused("work", moving.size)
        wanted, passed = set(evenly(total, reel.caps.frames)), 0
        for at in range(total):
            moving.seek(at)
            moving.load()  # also of those not kept: each is drawn over the one before
            if at in wanted:
                seen = moving.convert("RGBA")
                page = PIL.Image.new("RGBA", seen.size, "white")
                reel.add(PIL.Image.alpha_composite(page, seen), passed / 1000)
            lasts = moving.info.get("duration", 0)
            passed += lasts if lasts > 10 else UNTIMED_MS
    return passed / 1000


def film(data: bytes, kind: str, reel: Reel) -> float:
    """Keep frames of an MP4, MOV or WEBM. Returns its length in seconds. Raises Refused."""
    with _opened(data, kind, reel) as (container, stream):
        index = Index(container, stream, reel.caps)
    at, turn, unkept = 0, None, None
    with _opened(data, kind, reel) as (container, stream):
        for frame in _frames(container, stream, set(index.wanted) if index.keys_only else None):
            if frame.pts is None or at == len(index.wanted):
                continue
            turn = frame.rotation % 360 if turn is None else turn
            unkept = frame
            if frame.pts >= index.wanted[at]:
                reel.add(_seen(frame, stream, turn, reel.caps), index.seconds(frame.pts))
                at, unkept = bisect_right(index.wanted, frame.pts), None
        if unkept is not None:  # the last packets show nothing: then the last frame is the one before
            reel.add(_seen(unkept, stream, turn or 0, reel.caps), index.seconds(unkept.pts or 0))
    return index.seconds(index.end)


@contextmanager
def _opened(data: bytes, kind: str, reel: Reel) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The file and its moving pictures. Raises Refused for a file without them."""
    limits = {"protocol_whitelist": "", "codec_whitelist": ",".join(CODECS), "max_streams": "16"}
    with av.open(io.BytesIO(data), "r", format=DEMUXERS[kind], container_options=limits) as container:
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            raise Refused("no pictures")
        stream = streams[0]
        if stream.codec_context is None or stream.codec_context.name not in CODECS:
            raise Refused("codec")
        reel.check(stream.codec_context.width, stream.codec_context.height)
        yield container, stream


def _frames(container: InputContainer, stream: VideoStream, keys: set[int] | None) -> Iterator[VideoFrame]:
    """The film's frames in the order they are seen. keys: the key frames that are decoded, where not all frames are."""
    stream.codec_context.thread_type = "AUTO"
    stream.codec_context.thread_count = min(THREADS, os.cpu_count() or 1)
    for packet in container.demux(stream):
        if packet.size == 0 or keys is None or packet.pts in keys:  # an empty one asks for what is still held back
            yield from _decoded(packet)


def _decoded(packet: "Packet[VideoStream]") -> list[VideoFrame]:
    return packet.decode()


def _seen(frame: VideoFrame, stream: VideoStream, turn: int, caps: Caps) -> PIL.Image.Image:
    """A stored frame as a person sees it and at the size that is kept: pixels made square, upright."""
    aspect = float(stream.sample_aspect_ratio or 1)
    if not 0.25 <= aspect <= 4:  # no camera's
        aspect = 1.0
    width, height = caps.fitted(frame.width * aspect, frame.height)
    shown = frame.reformat(width, height, "rgb24", interpolation="BICUBIC")
    plane = shown.planes[0]
    picture = PIL.Image.frombytes("RGB", (width, height), bytes(plane), "raw", "RGB", plane.line_size)
    return picture.transpose(_TURNS[turn]) if turn in _TURNS else picture


def decode(data: bytes, kind: str, caps: Caps, write: Callable[[bytes], None]) -> dict[str, Any]:
    """Hand the frames that are kept to `write`, in order. Returns their size and times and the film's seconds.

    kind: as `video_caps.sniff` tells it. Raises Refused, or MemoryError.
    """
    av.logging.set_level(None)
    reel = Reel(caps, write)
    try:
        seconds = animation(data, reel) if kind in ("gif", "webp") else film(data, kind, reel)
    except PIL.Image.DecompressionBombError:  # Pillow's own cap on what a header may promise
        raise Refused("huge") from None
    except MemoryError:
        raise
    except _DAMAGE:
        raise Refused("damaged") from None
    if reel.size is None:
        raise Refused("damaged")
    return {"size": reel.size, "times": reel.times, "seconds": round(seconds, 3)}
