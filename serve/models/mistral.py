"""Pixtral 12B, Mistral Small 3.1 and Ministral 3: Mistral's models with a vision transformer for any shape."""

from typing import Any

from serve.models.base import Card
from serve.models.contracts import MISTRAL
from serve.models.family import Size, family
from serve.models.hardware import CacheShape
from serve.models.tool_calls import MISTRAL as MISTRAL_CALLS

NATIVE = ("vqa", "caption", "ocr", "chat")
ANY_SIZE = "pictures in their own shape, up to {} pixels a side"


def _card(side: int, **fields: Any) -> Card:
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
        _card(
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
        _card(
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
    *family(
        _card(
            1540,
            released="2025-12-02",
            context_window=262_144,
            links=("https://arxiv.org/abs/2601.08584",),
            about="Small models cut from Mistral Small 3.1 and taught by it; here in bfloat16, as FP8 needs a GPU.",
            overview=(
                "Ministral 3 is a family of small models that were pruned from Mistral Small 3.1 and taught by it, "
                "then by Mistral Medium 3; they keep its kind of vision transformer. They are assistants for text in "
                "many languages that also take pictures, with a very long context.",
                "They are made for machines with little memory: conversations, documents, tools. No form of boxes "
                "of their own was found; they are told to write them. Beyond the length of their first training "
                "attention is scaled, which vLLM leaves out; it is set here from the checkpoint's file.",
            ),
        ),
        [
            Size(
                f"ministral-3-{name.lower()}",
                f"mistralai/Ministral-3-{name}-Instruct-2512-BF16",
                parameters,
                CacheShape(layers=layers, heads=8, width=128),
                expect={"text_config.num_hidden_layers": layers},
            )
            for name, parameters, layers in (
                ("3B", 3_849_090_048, 26),
                ("8B", 8_918_026_240, 34),
                ("14B", 13_945_031_680, 40),
            )
        ],
        native=NATIVE,
        boxes=MISTRAL,
        tools=MISTRAL_CALLS,
        expect={"architectures": ["Mistral3ForConditionalGeneration"], "text_config.model_type": "ministral3"},
    ),
]
