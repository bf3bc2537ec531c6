"""A prompt's picture or film as vLLM takes it, in the form that costs it least."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from serve.engines.base import Prompt
from serve.media.geometry import Colour, Padded
from serve.media.image import Image, Pixels
from serve.media.reading import SMALL
from serve.request_id import CACHE_SALT

CHANNELS = 4
"""An array with so short a side may be taken for one with its channels first."""
STRIP = 2**20
"""Pixels of a padded strip that are resized at once."""

# Set once, for the whole process: nobody writes to pictures, and torch would rather that they could be written to.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


def slow(prompt: Prompt) -> bool:
    """Return whether `shown` takes so long that it must leave the event loop: it has a file to decode first, or more
    than `SMALL` pixels to make, padding and all frames counted."""
    if prompt.video is not None:
        return prompt.video.frames.size // 3 > SMALL
    image = prompt.image
    return image is not None and (image.left_to_read > 0 or image.width * image.height > SMALL)


@dataclass(frozen=True)
class Fit:
    """The one size that a processor brings pictures to, and the processor that does it.

    What is brought to that size here the processor takes as it is. The pixels are those that it would have made itself,
    bit by bit, since its own resizing makes them: it goes along the rows first and then along the columns, eight bits
    between, so that two calls, one for each axis, give what one gives for both. stretches: whether it brings pictures
    that are not square to that size, too.
    """

    processor: Any
    height: int
    width: int
    stretches: bool

    @classmethod
    def of(cls, processor: Any) -> "Fit | None":
        """Return the size of a transformers image processor; None for one that makes more than one picture of one."""
        from transformers.image_processing_backends import TorchvisionBackend

        plain = getattr(type(processor), "_preprocess", None) is TorchvisionBackend._preprocess
        if not plain or not processor.do_resize or processor.do_pad:
            return None
        size, crop = processor.size, processor.crop_size if processor.do_center_crop else None
        if size.height and size.width:
            wanted, stretches = (size.height, size.width), True
        elif size.shortest_edge and not size.longest_edge:
            wanted, stretches = (size.shortest_edge,) * 2, False
        else:
            return None
        fits = crop is None or (crop.height, crop.width) == wanted
        return cls(processor, *wanted, stretches) if fits else None

    def takes(self, image: Image) -> bool:
        """Return whether the processor brings this picture to `height` x `width` and nothing else."""
        return self.stretches or image.width == image.height

    def __call__(self, image: Image) -> Any:
        """Return the picture as uint8 [3, height, width]. Apart from the picture it takes a few megabytes at most."""
        if isinstance(image, Padded):
            rows = self._padded_rows(image.inner.pixels, image.colour)
        else:
            rows = self._resized(image.pixels, len(image.pixels), self.width)
        return _tensor(self._resized(rows, self.height, self.width))

    def _padded_rows(self, pixels: Pixels, colour: Colour) -> Pixels:
        """Return the square round a picture [side, width, 3], resized along its rows only."""
        height, width = pixels.shape[:2]
        side = max(width, height)
        left, top = (side - width) // 2, (side - height) // 2
        rows = np.empty((side, self.width, 3), np.uint8)
        if height < side:
            rows[:] = self._resized(np.full((1, side, 3), colour, np.uint8), 1, self.width)
        if width == side:
            rows[top : top + height] = self._resized(pixels, height, self.width)
            return rows
        step = max(1, STRIP // side)
        strip = np.full((step, side, 3), colour, np.uint8)
        for start in range(0, height, step):
            part = pixels[start : start + step]
            strip[: len(part), left : left + width] = part
            rows[start : start + step] = self._resized(strip[: len(part)], len(part), self.width)
        return rows

    def _resized(self, pixels: Pixels, height: int, width: int) -> Pixels:
        from transformers.image_utils import SizeDict

        resample, size = self.processor.resample, SizeDict(height=height, width=width)
        resized = self.processor.resize(image=_tensor(pixels)[None], size=size, resample=resample)
        array: Pixels = resized[0].permute(1, 2, 0).numpy()
        return array


def shown(prompt: Prompt, fit: Fit | None = None) -> dict[str, Any]:
    """Return the part of vLLM's input that a prompt's film is, or its picture as its family prepares it.

    fit: the size that the family's processor brings pictures to, if it is one.
    """
    if prompt.video is not None:
        # What vLLM wants of these families (0.32): {"video": uint8 [frames, height, width, 3]}, one array, with no
        # metadata beside it: only families that write times into the prompt ask for (array, metadata). Nor does
        # transformers pick frames again (do_sample_frames is false in these processors), so that
        # processor(text=..., videos=[video.frames]) is the reference for the same frames.
        # Frames that came through Ray are read-only, which torch warns of.
        return {"multi_modal_data": {"video": np.require(prompt.video.frames, requirements="W")}}
    if prompt.image is None:
        return {}
    # Small pictures are left to the processor, which works in a thread of vLLM's.
    large = prompt.image.width * prompt.image.height > SMALL
    picture = fit(prompt.image) if fit and large and fit.takes(prompt.image) else _seen(prompt.image)
    return {"multi_modal_data": {"image": [picture]}}


def named(image: Image) -> dict[str, Any]:
    """Return the same, with its name, of a picture that vLLM has in its cache."""
    return {"multi_modal_data": {"image": [None]}, **uuids(image)}


def name(image: Image) -> str | None:
    """What vLLM's caches know a picture by: its file's digest, for each salt another."""
    salt = CACHE_SALT.get()
    return f"{image.digest}-{salt}" if image.digest and salt else image.digest


def salted() -> dict[str, Any]:
    """The part of vLLM's input that keeps a prompt's prefix apart from those of other salts."""
    salt = CACHE_SALT.get()
    return {"cache_salt": salt} if salt else {}


def uuids(image: Image) -> dict[str, Any]:
    """Return the part of vLLM's input that names a picture for its caches. vLLM would else hash every pixel."""
    known_by = name(image)
    return {} if known_by is None else {"multi_modal_uuids": {"image": [known_by]}}


def _seen(image: Image) -> Any:
    """A tensor [3, height, width] over the pixels where they lie, unless its shape could be read another way.

    Processors turn an array [height, width, 3] into such a tensor by copying it, colour by colour, and torch's resizing
    of that copy is slow; of a view it has a fast kernel with the same results, bit by bit. At 12 megapixels a processor
    takes 7 ms in place of 83, with a square round it 9 in place of 110.
    """
    return image.pil() if min(image.width, image.height) <= CHANNELS else _tensor(image.pixels)


def _tensor(pixels: Pixels) -> Any:
    """A tensor [3, height, width] over an array [height, width, 3]."""
    import torch

    return torch.from_numpy(pixels).permute(2, 0, 1)
