"""A prompt's picture or film as vLLM takes it, in the form that costs it least."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from serve.engines.base import Prompt
from serve.image import Image
from serve.reading import SMALL
from serve.request_id import CACHE_SALT

CHANNELS = 4
"""An array with so short a side may be taken for one with its channels first."""

# Set once, for the whole process: nobody writes to pictures, and torch would rather that they could be written to.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


def slow(prompt: Prompt) -> bool:
    """Whether `shown` takes long enough to be done in a thread."""
    image = prompt.image
    return image is not None and (image.left_to_read or image.width * image.height) > SMALL


def shown(prompt: Prompt, prepare: Callable[[Image], Image]) -> dict[str, Any]:
    """The part of vLLM's input that a prompt's film or picture is. prepare: what the family does to a picture first."""
    if prompt.video is not None:
        # What vLLM wants of these families (0.32): {"video": uint8 [frames, height, width, 3]}, one array, with no
        # metadata beside it: only families that write times into the prompt ask for (array, metadata). Nor does
        # transformers pick frames again (do_sample_frames is false in these processors), so that
        # processor(text=..., videos=[video.frames]) is the reference for the same frames.
        # Frames that came through Ray are read-only, which torch warns of.
        return {"multi_modal_data": {"video": np.require(prompt.video.frames, requirements="W")}}
    if prompt.image is None:
        return {}
    return {"multi_modal_data": {"image": [_seen(prepare(prompt.image))]}, **_name(prompt.image)}


def named(image: Image) -> dict[str, Any]:
    """The same of a picture that vLLM has in its cache: its name alone."""
    return {"multi_modal_data": {"image": [None]}, **_name(image)}


def name(image: Image) -> str | None:
    """What vLLM's caches know a picture by: its file's digest, for each salt another."""
    salt = CACHE_SALT.get()
    return f"{image.digest}-{salt}" if image.digest and salt else image.digest


def salted() -> dict[str, Any]:
    """The part of vLLM's input that keeps a prompt's prefix apart from those of other salts."""
    salt = CACHE_SALT.get()
    return {"cache_salt": salt} if salt else {}


def _name(image: Image) -> dict[str, Any]:
    """vLLM would else hash every pixel for its caches."""
    known = name(image)
    return {} if known is None else {"multi_modal_uuids": {"image": [known]}}


def _seen(image: Image) -> Any:
    """A tensor [3, height, width] over the pixels where they lie, unless its shape could be read another way.

    Processors turn an array [height, width, 3] into such a tensor by copying it, colour by colour, and torch's resizing
    of that copy is slow; of a view it has a fast kernel with the same results, bit by bit. At 12 megapixels a processor
    takes 7 ms in place of 83, with a square round it 9 in place of 110.
    """
    if min(image.width, image.height) <= CHANNELS:
        return image.pil()
    import torch

    return torch.from_numpy(image.pixels).permute(2, 0, 1)
