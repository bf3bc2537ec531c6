"""Llama 4 Scout and Maverick: mixtures of experts that were trained on text and pictures from the start."""

from serve.models.base import Card
from serve.models.family import Size, family
from serve.models.hardware import CacheShape

CACHE_SHAPE = CacheShape(layers=48, heads=8, width=128)

MODELS = family(
    Card(
        organization="Meta",
        category="General vision-language assistant",
        modality="image and text in, text out",
        released="2025-04-05",
        context_window=10_485_760,
        parameters=None,
        licence="Llama 4 Community License (gated)",
        tasks=(),
        features=("tiles of 336 pixels and an overview", "a mixture of experts", "multi-turn conversation"),
        about="A mixture of experts, of which each token takes one beside a shared one, and a vision transformer.",
        overview=(
            "Llama 4 is a mixture of experts trained on text, pictures and frames of films together from the "
            "start; a vision transformer gives it patches as if they were words. Each token takes one expert "
            "beside one that all share, so that it is quick for its size.",
            "It converses about pictures in 12 languages, and is made for contexts far longer than are served "
            "here unless a deployment says so. It needs several large GPUs. No form in which it writes boxes was "
            "found, so it does not detect. Muse Glimmer is its maker's later open model.",
        ),
    ),
    # parameters: summed from the shapes
    [
        Size(
            "llama-4-scout",
            "meta-llama/Llama-4-Scout-17B-16E-Instruct",
            108_641_793_536,
            CACHE_SHAPE,
            gated=True,
            expect={"text_config.num_local_experts": 16},
        ),
        Size(
            "llama-4-maverick",
            "meta-llama/Llama-4-Maverick-17B-128E-Instruct",
            401_583_781_376,
            CACHE_SHAPE,
            gated=True,
            expect={"text_config.num_local_experts": 128},
            card={"context_window": 1_048_576},
        ),
    ],
    native=("vqa", "caption", "ocr", "chat"),
    expect={"architectures": ["Llama4ForConditionalGeneration"]},
)
