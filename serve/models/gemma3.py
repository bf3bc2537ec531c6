"""Gemma 3 (arXiv 2503.19786): pictures of 896 pixels as 256 tokens that see each other, in every layer.

It was not trained to write boxes as far as its makers say (huggingface.co/google/gemma-3-4b-it/discussions/38): it is
told to write them as Gemini does, which they think likely.
"""

from serve.models.base import Card
from serve.models.contracts import GEMMA4
from serve.models.family import Size, family
from serve.models.hardware import CacheShape


def _size(name: str, parameters: int, cache_shape: CacheShape, hidden_size: int, revision: str) -> Size:
    return Size(
        f"gemma-3-{name}",
        f"google/gemma-3-{name}-it",
        parameters,
        cache_shape,
        revision,
        gated=True,
        expect={"text_config.hidden_size": hidden_size},
    )


# Cache shapes: every sixth layer is global, the others keep 1,024 tokens, a sixteenth of the context that is served.
# Revisions: commits seen in public code that loads these files from a hub cache. Parameters: summed from the shapes.
MODELS = family(
    Card(
        organization="Google",
        category="General vision-language assistant",
        modality="image and text in, text out",
        released="2025-03-12",
        context_window=131_072,
        parameters=None,
        licence="Gemma Terms of Use (gated)",
        tasks=(),
        features=("pictures of 896 x 896 pixels (256 tokens)", "multi-turn conversation", "over 140 languages"),
        links=("https://arxiv.org/abs/2503.19786",),
        about="SigLIP-So400m at 896 pixels and Gemma 3, whose picture tokens see each other.",
        overview=(
            "SigLIP-So400m looks at a square of 896 pixels, whatever the picture's shape, and averages it down to 256 "
            "tokens. Gemma 3 reads them with attention both ways inside the picture; five of six layers look back "
            "1,024 tokens only. It was distilled from a larger model and tuned to follow instructions in many "
            "languages.",
            "It converses in many languages, answers questions and reads large print. Small print and long thin "
            "pictures suffer from the square, and places are guesses, as it was not trained to point. Gemma 4 came "
            "after it, with pictures in their own shape, boxes and reasoning.",
        ),
    ),
    [
        _size("4b", 4_300_079_472, CacheShape(7, 4, 256), 2560, "093f9f388b31de276ce2de164bdc2081324b9767"),
        _size("12b", 12_187_325_040, CacheShape(11, 8, 256), 3840, "96b6f1eccf38110c56df3a15bffe176da04bfd80"),
        _size("27b", 27_432_406_640, CacheShape(14, 16, 128), 5376, "005ad3404e59d6023443cb575daa05336842228a"),
    ],
    native=("vqa", "caption", "ocr", "chat"),
    boxes=GEMMA4,
    expect={"architectures": ["Gemma3ForConditionalGeneration"]},
)
