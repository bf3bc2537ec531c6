"""Gemma 4: pictures in their own shape, boxes as JSON with y first, reasoning that is off unless a request says.

Sides become multiples of 48 pixels (patches of 16, pooled 3 x 3), for at most 280 tokens; 70, 140, 560 or 1120 by
`engine: {mm_processor_kwargs: {max_soft_tokens: 560}}`. In the larger ones a picture's tokens see each other.
"""

from collections.abc import Sequence
from typing import Any

from serve.models.base import Card
from serve.models.contracts import GEMMA4
from serve.models.family import Size, family
from serve.models.hardware import CacheShape
from serve.models.instructed import chat_messages, detect_all
from serve.models.reasoning import CHANNEL, Reasoning
from serve.models.tool_calls import GEMMA4 as GEMMA4_CALLS

OPEN = (
    "Not served: transformers and vLLM disagree on the layers in which its pictures' tokens see each other, and which "
    "of both is right is open (serve/engines/README.md)."
)
_EACH_OTHER = "picture tokens that see each other"
_BUILD = (
    "A vision tower of {tower} parameters keeps a picture's shape and gives at most 280 tokens, which can be raised to "
    "1,120. {text} Most layers look back {window} tokens only. It was trained to answer, read, point out with boxes "
    "and, if asked, to reason first."
)
_UNIFIED = (
    "It has no vision tower: squares of 48 pixels go through one linear layer into Gemma 4 with 48 layers, which does "
    "the seeing, and sound does as well. It was trained to answer, read, point out with boxes and, if asked, to reason "
    "first."
)
_GOOD = (
    "It answers questions, reads charts and screenshots, and writes boxes in one form. Small print needs more tokens a "
    "picture than it gets by default. {own} It followed Gemma 3."
)


def _detect(phrases: Sequence[str]) -> str:
    """Return the words of Google's guide (ai.google.dev/gemma/docs/capabilities/vision)."""
    return f"detect {' and '.join(phrases)}, output only ```json"


def _size(
    name: str, parameters: int, cache_shape: CacheShape, hidden_size: int, overview: tuple[str, str], **card: Any
) -> Size:
    unified = {"architectures": ["Gemma4UnifiedForConditionalGeneration"]} if card.get("checked") == OPEN else {}
    return Size(
        f"gemma-4-{name.lower()}",
        f"google/gemma-4-{name}-it",
        parameters,
        cache_shape,
        "4d7ae4984b7db7de8f8457170b3f1a419ee76d52" if name == "26B-A4B" else None,  # seen in public code
        expect={"text_config.hidden_size": hidden_size, **unified},
        card={"overview": overview, **card},
    )


def _overview(tower: str, window: str, text: str, own: str) -> tuple[str, str]:
    return _BUILD.format(tower=tower, window=window, text=text), _GOOD.format(own=own)


_SMALL = "Each layer also looks its tokens up in a table of its own, so that fewer parameters compute than are stored."
_FEATURES = ("pictures in their own shape (up to 280 tokens)", "boxes as JSON", "reasoning", "multi-turn conversation",
             "system message", "over 140 languages")  # fmt: skip

# Cache shapes: heads and width of the global layers, and as many layers as hold what those and the sliding ones keep of
# 16,384 tokens. Parameters: summed from the shapes, the towers for sound among them.
MODELS = family(
    Card(
        organization="Google DeepMind",
        category="General vision-language assistant",
        modality="image and text in, text out",
        released="2026-04-02",
        context_window=262_144,
        parameters=None,
        licence="Apache-2.0",
        tasks=(),
        features=(*_FEATURES, _EACH_OTHER),
        links=("https://ai.google.dev/gemma/docs/core",),
        about="A vision tower that keeps a picture's shape, and Gemma 4, which can reason before it answers.",
    ),
    [
        _size("E2B", 5_104_297_504, CacheShape(4, 1, 512), 1536,
              _overview("170 million", "512", _SMALL, "The smallest of the family, for telephones and laptops."),
              context_window=131_072, features=_FEATURES),
        _size("E4B", 7_941_100_832, CacheShape(5, 2, 512), 2560,
              _overview("170 million", "512", _SMALL, "Made for laptops, and about twice as large as E2B."),
              context_window=131_072, features=_FEATURES),
        _size("12B", 11_959_730_176, CacheShape(18, 1, 512), 3840,
              (_UNIFIED, _GOOD.format(own="It was added two months after the others.")),
              released="2026-06-03", context_window=131_072,  # its config.json; Google's card says 256K
              checked=OPEN, about="Gemma 4 without a vision tower, which can reason."),
        _size("26B-A4B", 25_805_933_872, CacheShape(9, 2, 512), 2816,
              _overview("570 million", "1,024", "Of its 128 experts eight compute each token, 4 billion parameters in "
                        "all.", "It answers about as fast as a model of 4 billion parameters.")),
        _size("31B", 31_273_086_512, CacheShape(17, 4, 512), 5376,
              _overview("570 million", "1,024", "All of its 31 billion parameters compute each token.",
                        "The largest of the family, and the slowest.")),
    ],
    native=("vqa", "caption", "ocr", "chat", "detect"),
    skills={"detect": detect_all(chat_messages, GEMMA4, _detect)},
    expect={"architectures": ["Gemma4ForConditionalGeneration"]},
    reasoning=Reasoning((CHANNEL,), switchable=True, on=False),
    tools=GEMMA4_CALLS,
)  # fmt: skip
