"""Texts of several lengths, in each family's prompt format."""

import numpy as np

from serve.models import MODELS
from serve.models.base import Model, Turn

from .vocabulary import WORDS

PUBLISHED = {
    "llava": "llava-1.5-7b",
    "llava_next_mistral": "llava-v1.6-mistral-7b",
    "llava_next_vicuna": "llava-v1.6-vicuna-7b",
    "llava_onevision": "llava-onevision-qwen2-7b-ov",
    "llava_onevision_tied": "llava-onevision-qwen2-0.5b-ov",
    "llava_next_video": "llava-next-video-7b",
    "paligemma": "paligemma-3b-mix-224",
    "paligemma2": "paligemma2-3b-mix-224",
    "paligemma2_window": "paligemma2-3b-pt-896",
    "qwen2_5_vl": "qwen2.5-vl-7b",
    "qwen3_vl": "qwen3-vl-8b",
    "qwen3_vl_moe": "qwen3-vl-30b-a3b",
    "qwen3_5": "qwen3.5-9b",
    "qwen3_5_moe": "qwen3.5-35b-a3b",
}


def published(family: str) -> Model:
    """Return the catalogue's model of the same architecture."""
    return MODELS[PUBLISHED[family]]


def texts(count: int) -> list[str]:
    """Return texts of 2 to 17 words each."""
    rng = np.random.default_rng(5)
    words = WORDS.split()
    return [" ".join(rng.choice(words, size=2 + 3 * (i % 6))) for i in range(count)]


def prompts(family: str, count: int, *, filmed: bool = False) -> list[str]:
    """Return the texts as prompts with a question each, about an image or a video."""
    converse = published(family).converse
    return [converse([Turn("user", text, has_image=not filmed, has_video=filmed)]) for text in texts(count)]
