"""Pixtral 12B and Mistral Small 3.1: Mistral's models with a vision transformer for any shape."""

from typing import Any

from serve.models.base import Card
from serve.models.contracts import MISTRAL
from serve.models.family import Size, family
from serve.models.hardware import CacheShape
from serve.models.tool_calls import MISTRAL as MISTRAL_CALLS

NATIVE = ("vqa", "caption", "ocr", "chat")
ANY_SIZE = "pictures in their own shape, up to {} pixels a side"


def mistral_card(side: int, **fields: Any) -> Card:
    """Return a card. side: the longest of a picture as it is resized, in pixels."""
    return Card(
        organization="Mistral AI",
        category="General vision-language assistant",
        modality="image and text in, text out",
        parameters=None,
        licence="Apache-2.0",
        tasks=(),
        features=(ANY_SIZE.format(f"{side:,}"), "multi-turn conversation", "system message", "many languages"),
        **fields,
    )


# parameters: summed from the shapes
MODELS = [
    *family(
        mistral_card(
            1024,
            released="2024-09-17",
            context_window=131_072,
            links=("https://arxiv.org/abs/2410.07073",),
            about="Mistral NeMo 12B and a vision transformer of its own, trained from the start for any shape.",
            overview=(
                "Pixtral 12B joins a vision transformer of its own, trained for pictures of any shape, to Mistral "
                "NeMo. A token ends each row of patches, so that the model knows a picture's shape. It is trained "
                "on documents in which pictures and text alternate.",
                "It follows instructions about documents, charts and photographs, and its makers report that it "
                "answers text as well as other models of its size. No form of boxes of its own was found; it is "
                "told to write them. Mistral Small 3.1 and Ministral 3 came after it, with the same kind of encoder.",
            ),
        ),
        [
            Size(
                "pixtral-12b",
                "mistral-community/pixtral-12b",
                12_682_739_712,
                CacheShape(layers=40, heads=8, width=128),
                expect={"architectures": ["LlavaForConditionalGeneration"], "vision_config.model_type": "pixtral"},
            )
        ],
        native=NATIVE,
        boxes=MISTRAL,
    ),
    *family(
        mistral_card(
            1540,
            released="2025-03-17",
            context_window=131_072,
            about="Mistral Small 3 with Pixtral's kind of vision transformer, and four patches a token.",
            overview=(
                "Mistral Small 3.1 gives Mistral Small 3 a vision transformer of Pixtral's kind, four patches of "
                "which become one token. It is an assistant for text in many languages that also takes pictures.",
                "It converses, follows instructions, reads documents and calls tools. No form of boxes of its own "
                "was found; it is told to write them. Mistral Small 3.2 follows instructions better; Mistral Small "
                "4, a mixture of experts that reasons where it is asked to, came after both.",
            ),
        ),
        [
            Size(
                "mistral-small-3.1-24b",
                "mistralai/Mistral-Small-3.1-24B-Instruct-2503",
                24_011_361_280,
                CacheShape(layers=40, heads=8, width=128),
            )
        ],
        native=NATIVE,
        boxes=MISTRAL,
        tools=MISTRAL_CALLS,
        expect={"architectures": ["Mistral3ForConditionalGeneration"], "text_config.model_type": "mistral"},
    ),
]
