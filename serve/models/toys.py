"""The toys' folder, and the card that all of them share; the files of their families declare them."""

from pathlib import Path
from typing import Any

from serve.models.base import Card

FOLDER = Path(__file__).parents[1] / "toy"
CONTEXT = 512
"""The most tokens of a prompt and its reply: 100 or 121 of them are the image's."""
FAMILY_ARGS: dict[str, Any] = {
    "max_model_len": CONTEXT,
    "limit_mm_per_prompt": {"image": 1},
    # 64 requests of 220 tokens, where a picture with its question and answer has some 160; vLLM's free pages take
    # turns, so the whole cache is in memory after a while
    "kv_cache_memory_bytes": 128 << 20,
}
NOTE = (
    "A toy, trained on drawn shapes: it knows ten shapes, twelve colours, counts, places, sizes and some words, "
    "nothing else. "
    "For real pictures serve the published models: diptych serve --models llava-1.5-7b,paligemma-3b-mix-448"
)


def toy_card(like: str, parameters: int, tasks: tuple[str, ...], features: tuple[str, ...]) -> Card:
    """Return a toy's card. like: the family that it is made after. tasks, features: besides what all toys have."""
    return Card(
        organization="Diptych",
        category="Toy: drawn shapes only",
        modality="image and text in, text out",
        released="2026-11-30",
        context_window=CONTEXT,
        parameters=parameters,
        licence="Apache-2.0",
        tasks=("vqa", "caption", *tasks),
        features=(f"{like} architecture", *features, "runs on a laptop's CPU"),
        about=NOTE,
        overview=(
            f"{like}'s architecture and format of prompts and answers, with five million parameters and weights of "
            "this project's own, so that everything here runs on any machine without a download.",
            NOTE,
        ),
        toy=True,
        hardware="A laptop's CPU will do: it was trained on one core.",
        checked="The checkpoint itself: on CPU, against transformers and on fresh scenes (serve/toy/README.md).",
    )
