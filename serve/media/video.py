"""Videos from files and data URLs: a few evenly spaced frames with their times."""

from dataclasses import asdict
from typing import Annotated, Any

import numpy as np

from serve.errors import BadRequest, ServeError, TooLarge
from serve.media import processes
from serve.media.image import Image, data_url_bytes, field, file_digest
from serve.media.outline import RejectedFile
from serve.media.processes import DecodeJob
from serve.media.shared_pixels import Handle, SharedPixels, handles_travel
from serve.media.video_caps import CAPS, Caps, evenly, sniff

Frames = np.ndarray[Any, np.dtype[np.uint8]]

NICER = 5
"""Added to the niceness of a process that decodes a video, compared with an image."""
SLOWEST = 2.0
"""Wall-clock seconds allowed for each second of processor time that decoding a video may take."""


class Video:
    """A video as a few of its frames.

    frames: uint8 [frames, height, width, 3], RGB, upright. times: seconds from the start, one a frame. seconds: the
    length of the whole video. shared: the frames' memory, one below the other, where other processes can map it. param:
    the request's field that the video came in, for errors. digest: of the file, by which the process that decoded it
    tells videos apart; None elsewhere. An undecoded video (`undecoded`) holds its file only, until
    `MediaDecoder.decode_video`.
    """

    def __init__(
        self, frames: Frames | None, times: tuple[float, ...], seconds: float, shared: SharedPixels | None = None
    ) -> None:
        self._frames, self.times, self.seconds, self.shared = frames, times, seconds, shared
        self.param = "video"
        self.digest: str | None = None
        self.file = b""

    @classmethod
    def undecoded(cls, file: bytes, param: str) -> "Video":
        """Return a video whose file was checked by `undecoded_video`."""
        video = cls(None, (), 0.0)
        video.file, video.param = file, param
        return video

    @property
    def decoded(self) -> bool:
        return self._frames is not None

    @property
    def frames(self) -> Frames:
        assert self._frames is not None, "a video is decoded before its frames are used"
        return self._frames

    @property
    def width(self) -> int:
        return int(self.frames.shape[2])

    @property
    def height(self) -> int:
        return int(self.frames.shape[1])

    @classmethod
    def sharing(cls, shared: SharedPixels, times: tuple[float, ...], seconds: float) -> "Video":
        """Return a video whose frames, one per time, lie one below the other in `shared`."""
        video = cls(None, (), 0.0)
        video.share(shared, times, seconds)
        return video

    def share(self, shared: SharedPixels, times: tuple[float, ...], seconds: float) -> None:
        """Set the frames, which lie one below the other in `shared`, and drop the file."""
        self._frames = shared.pixels.reshape(len(times), -1, shared.width, 3)
        self.times, self.seconds, self.shared, self.file = times, seconds, shared, b""

    def __reduce__(self) -> tuple[Any, ...]:
        if self.shared is not None and handles_travel():
            return _at_handle, (self.shared.handle(), self.times, self.seconds)
        return Video, (self.frames, self.times, self.seconds)

    def sample(self, count: int) -> "Video":
        """Return a video of at most `count` of the frames with their times: evenly spaced, first and last included."""
        kept = evenly(len(self.frames), count)
        if len(kept) == len(self.frames):
            return self
        sample = Video(self.frames[kept], tuple(self.times[at] for at in kept), self.seconds)
        sample.digest = self.digest
        return sample

    def compute_digest(self) -> None:
        """Compute the digest of an undecoded video's file."""
        self.digest = file_digest(self.file)

    def first_frame(self) -> Image:
        """Return the first frame as an image, for code that handles images only."""
        return Image(self.frames[0])


def _at_handle(handle: Handle, times: tuple[float, ...], seconds: float) -> Video:
    return Video.sharing(SharedPixels.open(handle), times, seconds)


def undecoded_video(data: bytes, param: str = "video", caps: Caps = CAPS) -> Video:
    """Return the undecoded video in an MP4, MOV, WEBM, or animated GIF or WEBP file. Raises BadRequest or TooLarge."""
    if not data:
        raise BadRequest("The video is empty.", param=param, code="invalid_video")
    if len(data) > caps.bytes:
        raise _too_large(f"The video file is larger than {caps.bytes // 2**20} MB.", param)
    if sniff(data) is None:
        message = "The file is not an MP4, MOV or WEBM film, nor an animated GIF or WEBP."
        raise BadRequest(message, param=param, code="invalid_video")
    return Video.undecoded(data, param)


def video_from_url(url: str, param: str = "video") -> Video:
    """Return the undecoded video in a data URL (`data:video/mp4;base64,...`). Raises BadRequest or TooLarge."""
    return undecoded_video(data_url_bytes(url, param, "video", CAPS.bytes), param)


def decode_video(data: bytes, param: str = "video", caps: Caps = CAPS) -> Video:
    """Decode a video file, blocking. Raises BadRequest or TooLarge naming `param`.

    A video too long to decode as a whole gives evenly spaced key frames. The decoder's own messages are not passed on:
    they can hold addresses.
    """
    video = undecoded_video(data, param, caps)
    try:
        receive(video, *processes.run_job_blocking(decode_job(video, caps), data, within_s=SLOWEST * caps.seconds))
    except RejectedFile as refused:
        raise video_error(refused, param, caps) from None
    except TimeoutError:
        raise video_error(RejectedFile("slow"), param, caps) from None
    return video


def receive(video: Video, reply: dict[str, Any], fd: int) -> None:
    """Set a video's frames from a decoder process's reply and the memfd of its frames, which the video then owns."""
    (width, height), times = reply["size"], reply["times"]
    try:
        shared = SharedPixels.adopt(fd, width, height * len(times))
    except ValueError:
        raise RejectedFile("damaged") from None
    video.share(shared, tuple(times), reply["seconds"])


def decode_job(video: Video, caps: Caps = CAPS) -> DecodeJob:
    """Return the job of decoding a video, with its limits on time, memory and output."""
    return DecodeJob(
        sniff(video.file) or "",
        cpu_s=max(1, int(caps.seconds)),
        memory=caps.memory,
        output=3 * caps.pixels * caps.frames,
        nicer=NICER,
        caps=asdict(caps),
    )


def video_error(refused: RejectedFile, param: str, caps: Caps = CAPS) -> ServeError:
    """Return the client's error for a rejected video file."""
    size = " ({} x {})".format(*refused.size) if refused.size else ""
    too_large = {
        "huge": f"The video's frames have too many pixels{size}: "
        f"at most {caps.area / 1e6:.1f} megapixels and {caps.side} pixels a side.",
        "long": f"The video has more than {caps.total_frames} frames.",
        "work": f"The animation has too many frames of its size{size}: send a shorter or a smaller one, or an MP4.",
        "slow": f"The video takes longer than {caps.seconds:g} s to decode: send a shorter or a smaller one.",
        "memory": "The video takes too much memory to decode: send a smaller one.",
    }
    if refused.why in too_large:
        return _too_large(too_large[refused.why], param)
    message = {
        "tiny": f"The video's frames are too small{size}: at least {caps.least} pixels a side.",
        "no pictures": "The file has no moving pictures in it.",
        "codec": "The video's codec is not one of H.264, HEVC, VP8, VP9, AV1, MPEG-4 and MJPEG.",
    }.get(refused.why, "The video is damaged or cut short and cannot be decoded.")
    return BadRequest(message, param=param, code="invalid_video")


def _too_large(message: str, param: str) -> TooLarge:
    return TooLarge(message, param=param, code="video_too_large")


_WRONG_TYPE = BadRequest("The video must be a data URL.", param="video", code="invalid_type")
VideoField = Annotated[Video, field(Video, undecoded_video, video_from_url, _WRONG_TYPE)]
"""A request's video field: a data URL or uploaded bytes on the wire, an undecoded Video once validated."""
