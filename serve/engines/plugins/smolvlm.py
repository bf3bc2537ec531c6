"""A vLLM plugin that lets SmolVLM's processor read pictures without the package num2words.

transformers refuses to make the processor without it, and uses it for one thing: to write the number of a video's
frames as a word. Videos are not sent to this model here.
"""

from typing import Any


def register() -> None:
    """Register the plugin: the entry point `vllm.general_plugins`. It may be called several times."""
    from transformers.models.smolvlm import processing_smolvlm

    if processing_smolvlm.num2words is None:
        processing_smolvlm.num2words = refuse_video


def refuse_video(frames: Any) -> str:
    """Raise ImportError: a video's prompt needs the package."""
    raise ImportError("SmolVLM's prompt for a video needs the package num2words: pip install num2words.")
