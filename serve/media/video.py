"""Bytes from outside -> one checked film: a few frames, evenly spaced, with the time they were taken at."""

from dataclasses import asdict
from typing import Annotated, Any

import numpy as np

from serve.errors import BadRequest, ServeError, TooLarge
from serve.media import processes
from serve.media.image import Image, field
from serve.media.image import from_data_url as bytes_of
from serve.media.outline import Refused
from serve.media.processes import Job
from serve.media.shared_pixels import Handle, SharedPixels, handles_travel
from serve.media.video_caps import CAPS, Caps, evenly, sniff

Frames = np.ndarray[Any, np.dtype[np.uint8]]

NICER = 5
"""How much lower the priority of a film is than a picture's."""
SLOWEST = 2.0
"""Seconds by the clock for each second of processor time that a film may take."""


class Video:
    """A film as a few of its frames. frames: uint8 [frames, height, width, 3], RGB and upright; times: seconds from the
    start, one a frame; seconds: how long the whole film is; shared: the memory that the frames are in, one below the
    other, where other processes can open it.

    One that is `unread` is still its file: `Reading.watch` decodes it. param: the field of the request that it came in.
    """

    def __init__(
        self, frames: Frames | None, times: tuple[float, ...], seconds: float, shared: SharedPixels | None = None
    ) -> None:
        self._frames, self.times, self.seconds, self.shared = frames, times, seconds, shared
        self.param = "video"
        self.file = b""

    @classmethod
    def unread(cls, file: bytes, param: str) -> "Video":
        """A file that was checked by `unread`."""
        video = cls(None, (), 0.0)
        video.file, video.param = file, param
        return video

    @property
    def decoded(self) -> bool:
        return self._frames is not None

    @property
    def frames(self) -> Frames:
        assert self._frames is not None, "decoded before it is looked at"
        return self._frames

    @property
    def width(self) -> int:
        return int(self.frames.shape[2])

    @property
    def height(self) -> int:
        return int(self.frames.shape[1])

    @classmethod
    def sharing(cls, shared: SharedPixels, times: tuple[float, ...], seconds: float) -> "Video":
        """Return a film whose frames are these pixels, cut into as many pieces as there are times."""
        video = cls(None, (), 0.0)
        video.share(shared, times, seconds)
        return video

    def share(self, shared: SharedPixels, times: tuple[float, ...], seconds: float) -> None:
        """Take these pixels for the film's frames, and let go of its file."""
        self._frames = shared.pixels.reshape(len(times), -1, shared.width, 3)
        self.times, self.seconds, self.shared, self.file = times, seconds, shared, b""

    def __reduce__(self) -> tuple[Any, ...]:
        if self.shared is not None and handles_travel():
            return _at_handle, (self.shared.handle(), self.times, self.seconds)
        return Video, (self.frames, self.times, self.seconds)

    def sample(self, count: int) -> "Video":
        """At most `count` of its frames, evenly spaced, the first and the last among them; times go with them."""
        kept = evenly(len(self.frames), count)
        return (
            self
            if len(kept) == len(self.frames)
            else Video(self.frames[kept], tuple(self.times[at] for at in kept), self.seconds)
        )

    def still(self) -> Image:
        """The first frame: what stands for the film where only a picture can."""
        return Image(self.frames[0])


def _at_handle(handle: Handle, times: tuple[float, ...], seconds: float) -> Video:
    return Video.sharing(SharedPixels.open(handle), times, seconds)


def unread(data: bytes, param: str = "video", caps: Caps = CAPS) -> Video:
    """An MP4, MOV, WEBM, or an animated GIF or WEBP, still to be decoded. Raises BadRequest or TooLarge."""
    if not data:
        raise BadRequest("The video is empty.", param=param, code="invalid_video")
    if len(data) > caps.bytes:
        raise _too_large(f"The video file is larger than {caps.bytes // 2**20} MB.", param)
    if sniff(data) is None:
        said = "The file is not an MP4, MOV or WEBM film, nor an animated GIF or WEBP."
        raise BadRequest(said, param=param, code="invalid_video")
    return Video.unread(data, param)


def from_data_url(url: str, param: str = "video") -> Video:
    """`data:video/mp4;base64,...` as a Video that is still to be decoded. Raises BadRequest or TooLarge."""
    return unread(bytes_of(url, param, "video", CAPS.bytes), param)


def decode(data: bytes, param: str = "video", caps: Caps = CAPS) -> Video:
    """The Video in a file, for a thread that may wait for it. Raises BadRequest or TooLarge naming `param`.

    A film too long to decode whole gives the even ones of its key frames. What the decoder complains about is not
    repeated: its words can carry addresses.
    """
    video = unread(data, param, caps)
    try:
        receive(video, *processes.run_blocking(job(video, caps), data, within_s=SLOWEST * caps.seconds))
    except Refused as refused:
        raise refusal(refused, param, caps) from None
    except TimeoutError:
        raise refusal(Refused("slow"), param, caps) from None
    return video


def receive(video: Video, reply: dict[str, Any], fd: int) -> None:
    """Take what a media process says of a film, and the memfd of its frames, which is closed with them."""
    (width, height), times = reply["size"], reply["times"]
    try:
        shared = SharedPixels.adopt(fd, width, height * len(times))
    except ValueError:
        raise Refused("damaged") from None
    video.share(shared, tuple(times), reply["seconds"])


def job(video: Video, caps: Caps = CAPS) -> Job:
    """What decoding a film may take."""
    return Job(
        sniff(video.file) or "",
        cpu_s=max(1, int(caps.seconds)),
        memory=caps.memory,
        output=3 * caps.pixels * caps.frames,
        nicer=NICER,
        caps=asdict(caps),
    )


def refusal(refused: Refused, param: str, caps: Caps = CAPS) -> ServeError:
    """What a client is told of a film that was refused."""
    seen = " ({} x {})".format(*refused.size) if refused.size else ""
    most = {
        "huge": f"The video's frames have too many pixels{seen}: "
        f"at most {caps.area / 1e6:.1f} megapixels and {caps.side} pixels a side.",
        "long": f"The video has more than {caps.film_frames} frames.",
        "work": f"The animation has too many frames of its size{seen}: send a shorter or a smaller one, or an MP4.",
        "slow": f"The video takes longer than {caps.seconds:g} s to decode: send a shorter or a smaller one.",
        "memory": "The video takes too much memory to decode: send a smaller one.",
    }
    if refused.why in most:
        return _too_large(most[refused.why], param)
    said = {
        "tiny": f"The video's frames are too small{seen}: at least {caps.least} pixels a side.",
        "no pictures": "The file has no moving pictures in it.",
        "codec": "The video's codec is not one of H.264, HEVC, VP8, VP9, AV1, MPEG-4 and MJPEG.",
    }.get(refused.why, "The video is damaged or cut short and cannot be decoded.")
    return BadRequest(said, param=param, code="invalid_video")


def _too_large(said: str, param: str) -> TooLarge:
    return TooLarge(said, param=param, code="video_too_large")


_WRONG_TYPE = BadRequest("The video must be a data URL.", param="video", code="invalid_type")
Film = Annotated[Video, field(Video, unread, from_data_url, _WRONG_TYPE)]
"""A request's video field: a data URL or uploaded bytes on the wire, a Video once validated, still to be decoded."""
