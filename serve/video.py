"""A film as a model sees it: a few frames, evenly spaced, with the time they were taken at."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from serve.image import Image


@dataclass(frozen=True, eq=False)
class Video:
    """frames: uint8 [frames, height, width, 3], RGB and upright; times: seconds from the start, one a frame;
    seconds: how long the whole film is."""

    frames: np.ndarray[Any, np.dtype[np.uint8]]
    times: tuple[float, ...]
    seconds: float

    @property
    def width(self) -> int:
        return int(self.frames.shape[2])

    @property
    def height(self) -> int:
        return int(self.frames.shape[1])

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


def evenly(total: int, count: int) -> list[int]:
    """At most `count` of the indices 0..total-1, evenly spaced, first and last included, as vLLM and LLaVA choose."""
    return [int(at) for at in np.linspace(0, total - 1, min(total, count), dtype=int)]
