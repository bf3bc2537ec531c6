"""PaliGemma (arXiv 2407.07726): SigLIP and Gemma as a prefix-LM."""

from serve.models.base import CHECKED, Card, Checkpoint, Model, unchanged
from serve.models.hardware import CacheShape, hardware
from serve.models.paligemma_tasks import READ, READ_MIX, paligemma_prompt, paligemma_skills

# The image's tokens, (size / 14)^2, and the text that it was trained with (128 at 224 pixels in pt, else 256 or 512),
# rounded up. A prefix-LM prefills a prompt in one step, so every token of context costs memory in each step.
MAX_MODEL_LEN = {224: 1024, 448: 2048, 896: 5120}
GEMMA_2B = CacheShape(layers=18, heads=1, width=256)

# Commits seen in public code that loads these files from a hub cache; None where none was found.
REVISIONS = {
    "pt-224": "35e4f46485b4d07967e7e9935bc3786aad50687c",
    "mix-224": "d1d8734c9c3ad0ccfeea4afc270faa356c2ba515",
    "mix-448": "ead2d9a35598cb89119af004f5d023b311d1c4a1",
}


def _overview(mix: bool) -> tuple[str, str]:
    kind = (
        "The `mix` checkpoints are fine-tuned on many tasks at once, to be asked as they are."
        if mix
        else "The `pt` checkpoints are what comes out of pretraining: a base for fine-tuning on one task."
    )
    best = (
        "It is terse and good at naming, short answers, boxes of named things and their outlines as masks; at 448 "
        "pixels it also reads larger text."
        if mix
        else "Fine-tuned, it is good at captions, short answers, text, boxes and masks; as it is, its answers are weak "
        "and may be empty."
    )
    return (
        "PaliGemma joins the SigLIP-So400m image encoder to the language model Gemma 2B. Picture and prompt attend "
        "to each other fully and only the answer is causal: a prefix-LM, which most servers do not run as such. "
        "Prompts are short commands, as `caption en` or `detect cat ; dog`; places are written as location tokens, "
        f"and masks as segmentation tokens for a small decoder. {kind}",
        f"{best} It does not converse, takes no system message and explains nothing at length. The picture is "
        "stretched to a square, so very wide ones suffer. PaliGemma 2 came after it: the same tokens with Gemma 2, "
        "in three sizes.",
    )


def _published(kind: str, size: int, parameters: int) -> Model:
    mix = kind == "mix"
    hub = f"google/paligemma-3b-{kind}-{size}"
    card = Card(
        organization="Google",
        category="Vision-language model for many tasks" if mix else "Vision-language base model for fine-tuning",
        modality="image and text in, text out",
        released="2024-05-14",
        context_window=8192,
        parameters=parameters,
        licence="Gemma Terms of Use (gated)",
        tasks=(
            "vqa",
            "caption",
            "detect",
            "segment",
            "ocr (prompted)" if mix else "ocr",
            "point (derived)",
            "count (derived)",
            "classify (prompted)",
        ),
        features=("boxes as location tokens", "masks as segmentation tokens", "captions in 34 languages"),
        links=("https://arxiv.org/abs/2407.07726", f"https://huggingface.co/{hub}"),
        about=f"SigLIP-So400m at {size} pixels and Gemma 2B; image and prompt attend to each other fully."
        + (" Published for research purposes." if mix else " Made to be fine-tuned: weak when asked as it is."),
        overview=_overview(mix),
        hardware=hardware(parameters, GEMMA_2B, MAX_MODEL_LEN[size]),
        checked=CHECKED,
    )
    expect = {
        "architectures": ["PaliGemmaForConditionalGeneration"],
        "text_config.model_type": "gemma",
        "text_config.max_position_embeddings": 8192,
        "text_config.vocab_size": 257_216,
        "vision_config.image_size": size,
    }
    return Model(
        name=f"paligemma-3b-{kind}-{size}",
        checkpoint=Checkpoint(hub, REVISIONS.get(f"{kind}-{size}"), gated=True, expect=expect),
        card=card,
        skills=paligemma_skills(ocr_prompt=READ_MIX if mix else READ),
        converse=paligemma_prompt,
        prepare=unchanged,
        family_args={"max_model_len": MAX_MODEL_LEN[size], "limit_mm_per_prompt": {"image": 1}},
        prefix_lm=True,
    )


MODELS = [
    _published("pt", 224, 2_923_466_480),
    _published("pt", 448, 2_924_351_216),
    _published("pt", 896, 2_927_890_160),
    _published("mix", 224, 2_923_466_480),
    _published("mix", 448, 2_924_351_216),
]
