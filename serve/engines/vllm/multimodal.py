"""Convert a prompt's image or video to vLLM's input, in the form that is cheapest to process."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from serve.engines.base import PictureLimits, Prompt
from serve.engines.checkpoint_facts import CheckpointFacts
from serve.media.decoding import SMALL
from serve.media.geometry import Colour, Padded
from serve.media.image import Image, Pixels
from serve.tracing import CACHE_SALT

CHANNELS = 4
"""An array with a side of at most this length may be taken for one with its channels first."""
STRIP = 2**20
"""Pixels of a padded strip that are resized at a time."""

# Set once, for the whole process: torch warns of read-only arrays, and images are never written to.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


def is_slow(prompt: Prompt) -> bool:
    """Return whether `multimodal_input` must run in a thread: it would decode a file, or make more than SMALL pixels,
    with padding and all frames."""
    if prompt.video is not None:
        return prompt.video.frames.size // 3 > SMALL
    image = prompt.image
    return image is not None and (image.undecoded_pixels > 0 or image.width * image.height > SMALL)


@dataclass(frozen=True)
class Resizer:
    """A resizer of images to the fixed size of a transformers image processor, with the processor's own resizing.

    The processor takes such an image unchanged. The pixels equal the processor's own bit by bit: its resizing goes
    along the rows first and then along the columns, with eight bits in between, so two calls, one for each axis, give
    the result of one call for both. stretches: whether images that are not square are resized to that size too.
    """

    processor: Any
    height: int
    width: int
    stretches: bool

    @classmethod
    def of(cls, processor: Any) -> "Resizer | None":
        """Return the resizer for a transformers image processor; None for one that pads, or cuts images into tiles."""
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

    def applies_to(self, image: Image) -> bool:
        """Return whether the processor would only resize this image to `height` x `width`."""
        return self.stretches or image.width == image.height

    def __call__(self, image: Image) -> Any:
        """Resize an image to uint8 [3, height, width], using at most a few megabytes beside the image."""
        if image.width * image.height <= SMALL:
            return _tensor(self._resize(image.pixels, self.height, self.width))
        if isinstance(image, Padded):
            rows = self._padded_rows(image.inner.pixels, image.colour)
        else:
            rows = self._resize(image.pixels, len(image.pixels), self.width)
        return _tensor(self._resize(rows, self.height, self.width))

    def _padded_rows(self, pixels: Pixels, colour: Colour) -> Pixels:
        """Pad an image to its square and resize that along the rows only: [side, width, 3]."""
        height, width = pixels.shape[:2]
        side = max(width, height)
        left, top = (side - width) // 2, (side - height) // 2
        rows = np.empty((side, self.width, 3), np.uint8)
        if height < side:
            rows[:] = self._resize(np.full((1, side, 3), colour, np.uint8), 1, self.width)
        if width == side:
            rows[top : top + height] = self._resize(pixels, height, self.width)
            return rows
        step = max(1, STRIP // side)
        strip = np.full((step, side, 3), colour, np.uint8)
        for start in range(0, height, step):
            part = pixels[start : start + step]
            strip[: len(part), left : left + width] = part
            rows[start : start + step] = self._resize(strip[: len(part)], len(part), self.width)
        return rows

    def _resize(self, pixels: Pixels, height: int, width: int) -> Pixels:
        from transformers.image_utils import SizeDict

        resample, size = self.processor.resample, SizeDict(height=height, width=width)
        resized = self.processor.resize(image=_tensor(pixels)[None], size=size, resample=resample)
        array: Pixels = resized[0].permute(1, 2, 0).numpy()
        return array


def multimodal_input(prompt: Prompt, resizer: Resizer | None = None) -> dict[str, Any]:
    """Return the part of vLLM's input with a prompt's image or video; {} without either.

    resizer: of the model's image processor, if it has a fixed size.
    """
    if prompt.video is not None:
        # vLLM 0.32 takes {"video": uint8 [frames, height, width, 3]} for these families, without metadata, which only
        # families that write times into the prompt need. transformers does not sample the frames again
        # (do_sample_frames is false in these processors), so processor(text=..., videos=[video.frames]) is the
        # reference. torch warns of read-only arrays, so a shared one is copied.
        return {"multi_modal_data": {"video": np.require(prompt.video.frames, requirements="W")}}
    if prompt.image is None:
        return {}
    # Small images are resized by the processor, in a thread of vLLM's.
    large = prompt.image.width * prompt.image.height > SMALL
    image = resizer(prompt.image) if resizer and large and resizer.applies_to(prompt.image) else to_tensor(prompt.image)
    return {"multi_modal_data": {"image": [image]}}


def cached_input(image: Image) -> dict[str, Any]:
    """Return the part of vLLM's input for an image that vLLM has in its cache."""
    return {"multi_modal_data": {"image": [None]}, **uuids(image)}


def cache_key(image: Image) -> str | None:
    """Return an image's key in vLLM's caches: its file's digest and the request's cache salt; None without a digest."""
    salt = CACHE_SALT.get()
    return f"{image.digest}-{salt}" if image.digest and salt else image.digest


def cache_salt() -> dict[str, Any]:
    """Return the part of vLLM's input that separates the prefix caches of different salts."""
    salt = CACHE_SALT.get()
    return {"cache_salt": salt} if salt else {}


def uuids(image: Image) -> dict[str, Any]:
    """Return the part of vLLM's input with an image's cache key, without which vLLM hashes all pixels."""
    key = cache_key(image)
    return {} if key is None else {"multi_modal_uuids": {"image": [key]}}


def to_tensor(image: Image) -> Any:
    """Return a tensor [3, height, width] that views the pixels; a PIL image where that shape would be ambiguous.

    Processors convert an array [height, width, 3] by a copy, and torch resizes that copy slowly; for a view it has a
    fast kernel with bit-identical results. At 12 megapixels a processor takes 7 ms in place of 83, with padding to a
    square 9 in place of 110.
    """
    return image.pil() if min(image.width, image.height) <= CHANNELS else _tensor(image.pixels)


def _tensor(pixels: Pixels) -> Any:
    """Return a tensor [3, height, width] that views an array [height, width, 3]."""
    import torch

    return torch.from_numpy(pixels).permute(2, 0, 1)


def picture_limits(facts: CheckpointFacts, given: Mapping[str, Any] | None) -> PictureLimits | None:
    """Return the limits of resized pictures: those of the checkpoint's files, or the deployment's in their place.

    given: its `mm_processor_kwargs`, which vLLM reads in this order. None where pictures do not keep their shape.
    """
    if facts.picture_pixels is None or facts.picture_unit is None:
        return None
    given, (least, most) = given or {}, facts.picture_pixels
    size = given.get("size") or {}
    least = given.get("min_pixels") or size.get("shortest_edge") or least
    most = given.get("max_pixels") or size.get("longest_edge") or most
    return PictureLimits(facts.picture_unit, int(least), int(most))
