"""PaliGemma 2 (arXiv 2412.03555): PaliGemma with Gemma 2, in three sizes; the same tokens and prompts."""

from serve.models.base import CHECKED, Card, Checkpoint, Model, unchanged
from serve.models.hardware import CacheShape, hardware
from serve.models.paligemma import MAX_MODEL_LEN
from serve.models.paligemma_tasks import paligemma_prompt, paligemma_skills

# Gemma 2's cache shape, hidden size, and parameters with the projector and a SigLIP of 224 pixels; larger images add a
# position embedding of 1,152 numbers per patch. Summed from the shapes.
SIZES = {
    "3b": (CacheShape(layers=26, heads=4, width=256), 2304, 3_032_242_416),
    "10b": (CacheShape(layers=42, heads=8, width=256), 3584, 9_662_638_832),
    "28b": (CacheShape(layers=46, heads=16, width=128), 4608, 27_650_487_024),
}
RELEASED = {"pt": "2024-12-05", "ft-docci": "2024-12-05", "mix": "2025-02-19"}
KINDS = {
    "pt": "Vision-language base model for fine-tuning",
    "mix": "Vision-language model for many tasks",
    "ft-docci": "Captioner",
}
TASKS = {
    "pt": ("vqa", "caption", "ocr", "detect", "segment", "point (derived)", "count (derived)", "classify (prompted)"),
    "mix": ("vqa", "caption", "ocr", "detect", "segment", "point (derived)", "count (derived)", "classify (prompted)"),
    "ft-docci": ("caption (a detailed paragraph)",),
}
NOTES = {
    "pt": " Made to be fine-tuned: weak when asked as it is.",
    "mix": "",
    "ft-docci": " Fine-tuned on DOCCI for long, detailed captions; it does nothing else.",
}

# Commits seen in public code that loads these files from a hub cache; no other was found.
REVISIONS = {
    "3b-pt-224": "96eeb174da13ca1a2b247e4d0867436296c36420",
    "3b-pt-448": "bd60523c1ff2b0020c11e68affe65ef0b2379cab",
    "3b-mix-224": "8e40ab4cc5df93dfb7fd2fff754bcdff8b62ee78",
    "3b-mix-448": "1406c92ec87d32cc6b983239278901b904ba7a51",
    "10b-mix-448": "b26d16fb4251090ba4a4aa5af9fca1f8248ed5b6",
}


_GOOD = {
    "pt": "These `pt` checkpoints are a base for fine-tuning: as they are, their answers are weak and may be empty. "
    "Fine-tuned on one task they do well at captions, short answers, reading, boxes and masks.",
    "mix": "These `mix` checkpoints are fine-tuned on many tasks at once: good at captions, short answers, reading, "
    "boxes of named things and their masks; plain requests work as well as the short commands.",
    "ft-docci": "These `ft-docci` checkpoints are fine-tuned on DOCCI, pictures with long descriptions: they write a "
    "paragraph about what is where in a picture, and do nothing else.",
}


def _overview(kind: str, size: str) -> tuple[str, str]:
    return (
        "PaliGemma 2 keeps PaliGemma's image encoder (SigLIP-So400m), tokens and prompts, and replaces the language "
        f"model by Gemma 2, in three sizes: 3B, 10B and 28B with the encoder; this is the {size.upper()}. Picture and "
        "prompt attend to each other fully, as in a prefix-LM. Places are location tokens, masks are segmentation "
        "tokens.",
        f"{_GOOD[kind]} A larger model answers better, a larger picture shows smaller letters; both cost "
        "time. It does not converse. After it Google put pictures into Gemma itself: Gemma 3 converses about them "
        "but was not trained for boxes; Gemma 4 writes boxes as JSON, and neither writes masks.",
    )


def _published(size: str, kind: str, pixels: int) -> Model:
    cache_shape, width, smallest = SIZES[size]
    parameters = smallest + ((pixels // 14) ** 2 - (224 // 14) ** 2) * 1152
    variant = f"{size}-{kind}-{pixels}"
    hub = f"google/paligemma2-{variant}"
    card = Card(
        organization="Google",
        category=KINDS[kind],
        modality="image and text in, text out",
        released=RELEASED[kind],
        context_window=8192,
        parameters=parameters,
        licence="Gemma Terms of Use (gated)",
        tasks=TASKS[kind],
        features=("captions of a paragraph",)
        if kind == "ft-docci"
        else ("boxes as location tokens", "masks as segmentation tokens", "captions in 34 languages"),
        links=("https://arxiv.org/abs/2412.03555", f"https://huggingface.co/{hub}"),
        about=f"SigLIP-So400m at {pixels} pixels and Gemma 2; image and prompt see each other fully.{NOTES[kind]}",
        overview=_overview(kind, size),
        hardware=hardware(parameters, cache_shape, MAX_MODEL_LEN[pixels]),
        checked=CHECKED,
    )
    expect = {
        "architectures": ["PaliGemmaForConditionalGeneration"],
        "text_config.model_type": "gemma2",
        "text_config.hidden_size": width,
        "text_config.max_position_embeddings": 8192,
        "text_config.vocab_size": 257_216,
        "vision_config.image_size": pixels,
    }
    return Model(
        name=f"paligemma2-{variant}",
        checkpoint=Checkpoint(hub, REVISIONS.get(variant), gated=True, expect=expect),
        card=card,
        skills=paligemma_skills(only=("caption",), caption_tokens=512) if kind == "ft-docci" else paligemma_skills(),
        converse=paligemma_prompt,
        prepare=unchanged,
        family_args={"max_model_len": MAX_MODEL_LEN[pixels], "limit_mm_per_prompt": {"image": 1}},
        prefix_lm=True,
    )


MODELS = [
    *(_published(size, "pt", pixels) for size in SIZES for pixels in (224, 448, 896)),
    *(_published(size, "mix", pixels) for size in SIZES for pixels in (224, 448)),
    *(_published(size, "ft-docci", 448) for size in ("3b", "10b")),
]
