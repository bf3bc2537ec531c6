"""Decode a video's frames, in the decoder process (`decoder_process.py`) and within its limits. Imports no numpy."""

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

from serve.media.outline import RejectedFile
from serve.media.video_caps import Caps, evenly

# Demuxers are named, not guessed: a guess may be a playlist, which opens other files. No protocol is allowed either.
DEMUXERS = {"mp4": "mov", "webm": "matroska"}
CODECS = ("h264", "hevc", "vp8", "vp9", "libdav1d", "av1", "mpeg4", "mjpeg")
THREADS = 2
UNTIMED_MS = 100  # as browsers show an animation's frame whose duration is 0 or nearly so
_TRANSPOSITIONS = {  # counterclockwise, as FFmpeg counts
    90: PIL.Image.Transpose.ROTATE_90,
    180: PIL.Image.Transpose.ROTATE_180,
    270: PIL.Image.Transpose.ROTATE_270,
}
_DAMAGE = (
    *(av.FFmpegError, OSError, SyntaxError, ValueError, EOFError, TypeError, LookupError, ArithmeticError),
    struct.error,
)


class FrameWriter:
    """A writer of the frames that are kept: RGB, all of one size.

    write: receives the pixels of each frame. times: seconds from the start, one a frame.
    """

    def __init__(self, caps: Caps, write: Callable[[bytes], None]) -> None:
        self.caps = caps
        self.write = write
        self.size: tuple[int, int] | None = None
        self.times: list[float] = []

    def check(self, width: int, height: int) -> None:
        """Raise RejectedFile where frames of this size are above or below the caps."""
        if width * height > self.caps.area or max(width, height) > self.caps.side:
            raise RejectedFile("huge", (width, height))
        if min(width, height) < self.caps.least:
            raise RejectedFile("tiny", (width, height))

    def add(self, image: PIL.Image.Image, time: float) -> None:
        if self.size is None:
            self.size = self.caps.fitted(*image.size)
        if image.size != self.size:
            image = image.resize(self.size, PIL.Image.Resampling.BICUBIC, reducing_gap=3.0)
        self.write(image.convert("RGB").tobytes())
        self.times.append(round(time, 3))


class FrameIndex:
    """An index of a video's frames, made from its packets before any is decoded. Times are in the stream's unit.

    wanted: the times of the frames to keep. keys_only: whether these are key frames and only key frames are decoded.
    """

    def __init__(self, container: InputContainer, stream: VideoStream, caps: Caps) -> None:
        ends: dict[int, int] = {}
        keys: list[int] = []
        for packet in container.demux(stream):
            if packet.is_corrupt:  # the file is cut off in it
                raise RejectedFile("damaged")
            if packet.pts is None or packet.size == 0 or packet.is_discard:
                continue
            ends[packet.pts] = packet.pts + (packet.duration or 0)
            if packet.is_keyframe:
                keys.append(packet.pts)
            if len(ends) > caps.total_frames:
                raise RejectedFile("long")
        if not ends or stream.time_base is None:
            raise RejectedFile("damaged")
        stamps = sorted(ends)
        self.unit, self.start, self.end = stream.time_base, stamps[0], ends[stamps[-1]]
        self.keys_only = len(stamps) * stream.codec_context.width * stream.codec_context.height > caps.work
        chosen = sorted(keys) if self.keys_only else stamps
        self.wanted = [chosen[at] for at in evenly(len(chosen), caps.frames)]

    def seconds(self, stamp: int) -> float:
        """Return the seconds from the first frame."""
        return float((stamp - self.start) * self.unit)


def decode_animation(data: bytes, writer: FrameWriter) -> float:
    """Write frames of an animated GIF or WEBP, blended with white.

    Returns its length in seconds. Raises RejectedFile.
    """
    with PIL.Image.open(io.BytesIO(data), formats=("GIF", "WEBP")) as moving:
        writer.check(*moving.size)
        total: int = getattr(moving, "n_frames", 1)
        if total > writer.caps.total_frames:
            raise RejectedFile("long")
        if total * moving.width * moving.height > writer.caps.animation_work:
            raise RejectedFile("work", moving.size)
        wanted, passed = set(evenly(total, writer.caps.frames)), 0
        for at in range(total):
            moving.seek(at)
            moving.load()  # frames that are not kept too: each is drawn over the one before
            if at in wanted:
                rgba = moving.convert("RGBA")
                white = PIL.Image.new("RGBA", rgba.size, "white")
                writer.add(PIL.Image.alpha_composite(white, rgba), passed / 1000)
            duration = moving.info.get("duration", 0)
            passed += duration if duration > 10 else UNTIMED_MS
    return passed / 1000


def decode_film(data: bytes, kind: str, writer: FrameWriter) -> float:
    """Write frames of an MP4, MOV or WEBM. Returns its length in seconds. Raises RejectedFile."""
    with _open(data, kind, writer) as (container, stream):
        index = FrameIndex(container, stream, writer.caps)
    at, turn, pending = 0, None, None
    with _open(data, kind, writer) as (container, stream):
        for frame in _frames(container, stream, set(index.wanted) if index.keys_only else None):
            if frame.pts is None or at == len(index.wanted):
                continue
            turn = frame.rotation % 360 if turn is None else turn
            pending = frame
            if frame.pts >= index.wanted[at]:
                writer.add(_to_image(frame, stream, turn, writer.caps), index.seconds(frame.pts))
                at, pending = bisect_right(index.wanted, frame.pts), None
        if pending is not None:  # the last packets hold no frame: then the last frame is the one before them
            writer.add(_to_image(pending, stream, turn or 0, writer.caps), index.seconds(pending.pts or 0))
    return index.seconds(index.end)


@contextmanager
def _open(data: bytes, kind: str, writer: FrameWriter) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file and its video stream. Raises RejectedFile where there is none or its codec is not allowed."""
    limits = {"protocol_whitelist": "", "codec_whitelist": ",".join(CODECS), "max_streams": "16"}
    with av.open(io.BytesIO(data), "r", format=DEMUXERS[kind], container_options=limits) as container:
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            raise RejectedFile("no pictures")
        stream = streams[0]
        if stream.codec_context is None or stream.codec_context.name not in CODECS:
            raise RejectedFile("codec")
        writer.check(stream.codec_context.width, stream.codec_context.height)
        yield container, stream


def _frames(container: InputContainer, stream: VideoStream, keys: set[int] | None) -> Iterator[VideoFrame]:
    """Decode and yield frames in display order. keys: the times of the key frames to decode; None decodes all."""
    stream.codec_context.thread_type = "AUTO"
    stream.codec_context.thread_count = min(THREADS, os.cpu_count() or 1)
    for packet in container.demux(stream):
        if packet.size == 0 or keys is None or packet.pts in keys:  # an empty packet flushes the decoder
            yield from _decoded(packet)


def _decoded(packet: "Packet[VideoStream]") -> list[VideoFrame]:
    return packet.decode()


def _to_image(frame: VideoFrame, stream: VideoStream, turn: int, caps: Caps) -> PIL.Image.Image:
    """Convert a frame to RGB, upright, with square pixels, at the size that is kept. turn: degrees counterclockwise."""
    aspect = float(stream.sample_aspect_ratio or 1)
    if not 0.25 <= aspect <= 4:  # no camera writes it
        aspect = 1.0
    width, height = caps.fitted(frame.width * aspect, frame.height)
    rgb = frame.reformat(width, height, "rgb24", interpolation="BICUBIC")
    plane = rgb.planes[0]
    image = PIL.Image.frombytes("RGB", (width, height), bytes(plane), "raw", "RGB", plane.line_size)
    return image.transpose(_TRANSPOSITIONS[turn]) if turn in _TRANSPOSITIONS else image


def decode_frames(data: bytes, kind: str, caps: Caps, write: Callable[[bytes], None]) -> dict[str, Any]:
    """Pass the kept frames to `write`, in order. Returns their size and times, and the video's length in seconds.

    kind: as `video_caps.sniff` returns it. Raises RejectedFile, or MemoryError.
    """
    av.logging.set_level(None)
    writer = FrameWriter(caps, write)
    try:
        seconds = decode_animation(data, writer) if kind in ("gif", "webp") else decode_film(data, kind, writer)
    except PIL.Image.DecompressionBombError:  # Pillow's own limit on a header's size
        raise RejectedFile("huge") from None
    except MemoryError:
        raise
    except _DAMAGE:
        raise RejectedFile("damaged") from None
    if writer.size is None:
        raise RejectedFile("damaged")
    return {"size": writer.size, "times": writer.times, "seconds": round(seconds, 3)}
