"""Granite Vision 4.1: Granite 4.1, to whose layers features of several depths of SigLIP2 are added."""

from serve.models.base import Card
from serve.models.family import Size, family
from serve.models.hardware import CacheShape

MODELS = family(
    Card(
        organization="IBM",
        category="Vision-language model for documents",
        modality="image and text in, text out",
        released="2026-04",
        context_window=131_072,
        parameters=None,
        licence="Apache-2.0",
        tasks=(),
        features=("tiles of 384 pixels and an overview", "charts and tables to CSV, JSON and HTML, by tags"),
        about="SigLIP2, a Q-Former for each window of patches, and Granite 4.1, made to read business documents.",
        overview=(
            "Granite Vision 4.1 joins SigLIP2 to Granite 4.1. A small transformer compresses each window of "
            "patches to a quarter, and features from several depths of the encoder are added to several layers of "
            "the language model. It is trained to take data out of documents.",
            "It turns charts into CSV, summaries or code and tables into HTML or JSON, where its own tags ask for "
            "them, and fills in a JSON schema. It is made for documents more than for photographs, and no form in "
            "which it writes boxes was found. It came after Granite 4.0 3B Vision.",
        ),
    ),
    # parameters: summed from the shapes
    [
        Size(
            "granite-vision-4.1-4b",
            "ibm-granite/granite-vision-4.1-4b",
            3_981_968_112,
            CacheShape(layers=40, heads=8, width=64),
            expect={"architectures": ["Granite4VisionForConditionalGeneration"]},
        )
    ],
    native=("vqa", "caption", "ocr", "chat"),
)
