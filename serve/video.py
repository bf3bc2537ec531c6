"""Bytes from outside -> one checked film: a few frames, evenly spaced, with the time they were taken at."""

from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import GetPydanticSchema
from pydantic_core import core_schema

from serve.errors import BadRequest, ServeError, TooLarge
from serve.image import Image, from_data_url
from serve.media import processes
from serve.media.outline import Refused
from serve.media.processes import Job
from serve.media.shared_pixels import Handle, SharedPixels, handles_travel
from serve.video_caps import CAPS, Caps, evenly, sniff

NICER = 5
"""How much lower the priority of a film is than a picture's."""
SLOWEST = 2.0
"""Seconds by the clock for each second of processor time that a film may take."""


@dataclass(frozen=True, eq=False)
class Video:
    """frames: uint8 [frames, height, width, 3], RGB and upright; times: seconds from the start, one a frame;
    seconds: how long the whole film is; shared: the memory that the frames are in, one below the other, where other
    processes can open it."""

    frames: np.ndarray[Any, np.dtype[np.uint8]]
    times: tuple[float, ...]
    seconds: float
    shared: SharedPixels | None = None

    @property
    def width(self) -> int:
        return int(self.frames.shape[2])

    @property
    def height(self) -> int:
        return int(self.frames.shape[1])

    @classmethod
    def sharing(cls, shared: SharedPixels, times: tuple[float, ...], seconds: float) -> "Video":
        """Return a film whose frames are these pixels, cut into as many pieces as there are times."""
        frames = shared.pixels.reshape(len(times), -1, shared.width, 3)
        return cls(frames, times, seconds, shared)

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


def decode(data: bytes, param: str = "video", caps: Caps = CAPS) -> Video:
    """An MP4, MOV, WEBM, or an animated GIF or WEBP as a Video. Raises BadRequest or TooLarge naming `param`.

    A film too long to decode whole gives the even ones of its key frames. What the decoder complains about is not
    repeated: its words can carry addresses. Takes seconds: call it off the event loop.
    """
    if not data:
        raise BadRequest("The video is empty.", param=param, code="invalid_video")
    if len(data) > caps.bytes:
        raise _too_large(f"The video file is larger than {caps.bytes // 2**20} MB.", param)
    kind = sniff(data)
    if kind is None:
        said = "The file is not an MP4, MOV or WEBM film, nor an animated GIF or WEBP."
        raise BadRequest(said, param=param, code="invalid_video")
    try:
        reply, fd = processes.run_blocking(job(kind, caps), data, within_s=SLOWEST * caps.seconds)
    except Refused as refused:
        raise refusal(refused, param, caps) from None
    except TimeoutError:
        raise refusal(Refused("slow"), param, caps) from None
    return _video(reply, fd)


def _video(reply: dict[str, Any], fd: int) -> Video:
    """What a media process says of a film, and the memfd of its frames."""
    (width, height), times = reply["size"], reply["times"]
    return Video.sharing(SharedPixels.adopt(fd, width, height * len(times)), tuple(times), reply["seconds"])


def job(kind: str, caps: Caps = CAPS) -> Job:
    """What decoding a film of this kind may take."""
    return Job(
        kind,
        cpu_s=max(1, int(caps.seconds)),
        memory=caps.memory,
        output=3 * caps.pixels * caps.frames,
        nicer=NICER,
        caps=asdict(caps),
    )


def decode_data_url(url: str, param: str = "video") -> Video:
    """`data:video/mp4;base64,...` as a Video."""
    return decode(from_data_url(url, param, "video", CAPS.bytes), param)


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


def _schema(_source: Any, _handler: Any) -> core_schema.CoreSchema:
    def load(value: Any) -> Video:
        if isinstance(value, Video):
            return value
        if isinstance(value, bytes):
            return decode(value)
        if isinstance(value, str):
            return decode_data_url(value)
        raise BadRequest("The video must be a data URL.", param="video", code="invalid_type")

    return core_schema.no_info_plain_validator_function(
        load,
        json_schema_input_schema=core_schema.str_schema(),
        serialization=core_schema.to_string_ser_schema(),
    )


Film = Annotated[Video, GetPydanticSchema(_schema)]
"""A request's video field: a data URL or uploaded bytes on the wire, a Video once validated.

Validating decodes, which takes up to seconds: validate off the event loop.
"""
