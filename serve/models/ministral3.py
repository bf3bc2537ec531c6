"""Ministral 3 (arXiv 2601.08584): small models cut from Mistral Small 3.1, as instructed and as trained to reason."""

from dataclasses import replace

from serve.models.base import Card, Model
from serve.models.contracts import MISTRAL
from serve.models.family import Size, family
from serve.models.hardware import CacheShape
from serve.models.mistral import NATIVE, mistral_card
from serve.models.reasoning import BRACKETS, Reasoning
from serve.models.tool_calls import MISTRAL as MISTRAL_CALLS

SIZES = {"3B": (3_849_090_048, 26), "8B": (8_918_026_240, 34), "14B": (13_945_031_680, 40)}
"""Parameters, summed from the shapes, and layers."""

CARD = mistral_card(
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
)

REASONING = replace(
    CARD,
    category="Vision-language model that reasons",
    features=(*CARD.features, "reasons before each answer"),
    about="Ministral 3, trained further to reason before it answers, in bfloat16.",
    overview=(
        CARD.overview[0] + " Of each size there is an edition that was trained further to reason; this is that one.",
        "It is made for mathematics, programming and the sciences. Its template begins each conversation with a system "
        "message that tells it to draft its thoughts, and a request's own system message stands in place of that one, "
        "so that it may then answer at once. Its makers draw its words at random. It has no known form of boxes.",
    ),
)


def _models(card: Card, edition: str, end: str, reasoning: Reasoning | None) -> list[Model]:
    """Return the models of an edition, all of the same shapes. end: of the models' names."""
    return family(
        card,
        [
            Size(
                f"ministral-3-{name.lower()}{end}",
                f"mistralai/Ministral-3-{name}-{edition}",
                parameters,
                CacheShape(layers=layers, heads=8, width=128),
                expect={"text_config.num_hidden_layers": layers},
            )
            for name, (parameters, layers) in SIZES.items()
        ],
        native=NATIVE,
        boxes=MISTRAL,
        tools=MISTRAL_CALLS,
        expect={"architectures": ["Mistral3ForConditionalGeneration"], "text_config.model_type": "ministral3"},
        reasoning=reasoning,
    )


MODELS = [
    *_models(CARD, "Instruct-2512-BF16", "", None),
    *_models(REASONING, "Reasoning-2512", "-reasoning", Reasoning((BRACKETS,), on=True)),
]
