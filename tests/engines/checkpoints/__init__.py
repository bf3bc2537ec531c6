"""Tiny random checkpoints in the layout that the hub publishes, made in a second each, and what to ask them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from serve.engines.vllm.torchvision import repair

from . import llava, llava_next, llava_next_video, llava_onevision, named, paligemma, weights
from .pictures import films, odd_pictures, pictures
from .prompts import prompts, published, texts
from .vocabulary import WORDS

__all__ = ["FAMILIES", "WORDS", "films", "make", "odd_pictures", "pictures", "prompts", "published", "texts"]

FAMILIES: dict[str, Callable[[int], tuple[Any, Any]]] = {
    "llava": llava.build,
    "llava_next_mistral": llava_next.mistral,
    "llava_next_vicuna": llava_next.vicuna,
    "llava_onevision": llava_onevision.build,
    "llava_onevision_tied": llava_onevision.tied,
    "llava_next_video": llava_next_video.build,
    "paligemma": paligemma.gemma,
    "paligemma2": paligemma.gemma2,
    "paligemma2_window": paligemma.gemma2_window,
}
"""A family's model and processor, as transformers makes them, by the longest sequence in tokens."""


def make(family: str, folder: Path, context: int = 128) -> Path:
    """Write one of FAMILIES as the hub's files are written, or one of named.ARCHITECTURES.

    context: the longest sequence of one of FAMILIES, in tokens.
    """
    if family not in FAMILIES:
        return named.make_named(family, folder)
    repair()
    import torch

    torch.manual_seed(7)
    folder.mkdir(parents=True, exist_ok=True)
    model, processor = FAMILIES[family](context)
    with torch.no_grad():
        weights.draw(model)
    model.to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)
    weights.publish(folder)
    return folder
