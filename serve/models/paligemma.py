"""PaliGemma (arXiv 2407.07726): SigLIP and Gemma as a prefix-LM, prompts as in its training."""

import re
from collections.abc import Sequence
from pathlib import Path

from serve.engines.base import Prompt, Spoken
from serve.errors import BadRequest, ParseError
from serve.geometry import clip
from serve.image import Image
from serve.models.base import TOY_NOTE, Card, Checkpoint, Model, Skill, Turn, sampling
from serve.models.plain import parse_caption, parse_vqa
from serve.tasks.base import Request
from serve.tasks.boxes import DetectResult, LabelledBox, label_key
from serve.tasks.caption import CaptionRequest
from serve.tasks.detect import DetectRequest
from serve.tasks.vqa import VqaRequest

BINS = 1023  # training bins are round(v * 1023); the evaluators of big_vision divide by the same
_FOUND = re.compile(r"<loc(\d{4})>\s*<loc(\d{4})>\s*<loc(\d{4})>\s*<loc(\d{4})>\s*([^;<>]*)")


def _ask(request: Request, text: str, max_tokens: int) -> list[Prompt]:
    """The bare text: the processor adds the image tokens, `<bos>` and the newline (parity notes)."""
    return [Prompt(text, request.image, sampling(request, max_tokens))]


def ask_vqa(request: VqaRequest) -> list[Prompt]:
    return _ask(request, f"answer {request.lang} {request.question}", 32)


def ask_caption(request: CaptionRequest) -> list[Prompt]:
    return _ask(request, f"caption {request.lang}", 96)


def ask_detect(request: DetectRequest) -> list[Prompt]:
    return _ask(request, f"detect {' ; '.join(request.labels)}", 256)


def parse_detect(spoken: Sequence[Spoken], request: DetectRequest) -> DetectResult:
    """`<locY0><locX0><locY1><locX1> label ; ...` -> boxes in pixels. An empty reply means that nothing was found.

    Raises ParseError when there are words but no whole box in them, or only boxes turned inside out.
    """
    said = spoken[0]
    width, height = request.image.width, request.image.height
    asked = {label_key(label): label for label in request.labels}
    boxes = []
    for match in _FOUND.finditer(said.text):
        y0, x0, y1, x1 = (int(code) / BINS for code in match.groups()[:4])
        if y1 > y0 and x1 > x0 and max(y1, x1) <= 1:
            label = match[5].strip() or request.labels[0]
            box = clip((x0 * width, y0 * height, x1 * width, y1 * height), width, height)
            score = said.confidence(match.start(), match.start() + len(match[0].rstrip()))
            boxes.append(LabelledBox(label=asked.get(label_key(label), label), box=box, score=score))
    if not boxes and said.text.strip():
        raise ParseError("The reply holds no box of the form <locY0><locX0><locY1><locX1> label.")
    return DetectResult(boxes=boxes)


def converse(turns: Sequence[Turn]) -> str:
    """The user's words are the prompt (`caption en`, `detect cat`); an image alone asks for its caption."""
    if len(turns) != 1 or turns[0].role != "user":
        raise BadRequest(
            "PaliGemma was trained on single prompts: one user message, no system message, no history.",
            param="messages",
        )
    if not turns[0].pictured:
        raise BadRequest("PaliGemma needs an image.", param="messages[0].content")
    return turns[0].text.strip() or "caption en"


def prepare(image: Image) -> Image:
    """The processor stretches the whole picture to a square, as in training: nothing to do before it."""
    return image


SKILLS = {
    "vqa": Skill(ask_vqa, parse_vqa),
    "caption": Skill(ask_caption, parse_caption),
    "detect": Skill(ask_detect, parse_detect),
}


def _card(kind: str, size: int, parameters: int) -> Card:
    mix = kind == "mix"
    return Card(
        organization="Google",
        category="Vision-language model for many tasks" if mix else "Vision-language base model for fine-tuning",
        modality="image and text in, text out",
        released="2024-05-14",
        context_window=8192,
        parameters=parameters,
        licence="Gemma Terms of Use (gated)",
        tasks=("vqa", "caption", "detect", "segment", "ocr (prompted)" if mix else "ocr"),
        features=("boxes as location tokens", "masks as segmentation tokens", "captions in 34 languages"),
        links=("https://arxiv.org/abs/2407.07726", f"https://huggingface.co/google/paligemma-3b-{kind}-{size}"),
        about=f"SigLIP-So400m at {size} pixels and Gemma 2B; image and prompt attend to each other fully."
        + ("" if mix else " Made to be fine-tuned: weak when asked as it is."),
    )


def _published(kind: str, size: int, parameters: int, max_model_len: int) -> Model:
    return Model(
        name=f"paligemma-3b-{kind}-{size}",
        checkpoint=Checkpoint(f"google/paligemma-3b-{kind}-{size}", gated=True),
        card=_card(kind, size, parameters),
        skills=SKILLS,
        converse=converse,
        prepare=prepare,
        engine={"max_model_len": max_model_len, "limit_mm_per_prompt": {"image": 1}},
        prefix_lm=True,
    )


# Context: the image's tokens (size / 14)^2 and the 512 tokens of text it was trained with, rounded up. A prefix-LM
# prefills a prompt whole, so every token of context costs memory in each step.
MODELS = [
    _published("pt", 224, 2_923_466_480, 1024),
    _published("pt", 448, 2_924_351_216, 2048),
    _published("pt", 896, 2_927_890_160, 5120),
    _published("mix", 224, 2_923_466_480, 1024),
    _published("mix", 448, 2_924_351_216, 2048),
    Model(
        name="toy-paligemma",
        checkpoint=Checkpoint(str(Path(__file__).parents[1] / "toy" / "paligemma")),
        card=Card(
            organization="Diptych",
            category="Toy: drawn shapes only",
            modality="image and text in, text out",
            released="2026-11-23",
            context_window=256,
            parameters=2_124_736,
            licence="Apache-2.0",
            tasks=("vqa", "caption", "detect", "ocr (listed words)"),
            features=("PaliGemma architecture", "boxes as location tokens", "runs on a laptop's CPU"),
            about=TOY_NOTE,
            toy=True,
        ),
        skills=SKILLS,
        converse=converse,
        prepare=prepare,
        engine={"max_model_len": 256, "limit_mm_per_prompt": {"image": 1}},
        prefix_lm=True,
    ),
]
