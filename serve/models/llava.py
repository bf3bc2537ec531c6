"""LLaVA-1.5 (arXiv 2310.03744): CLIP-L 336 and Vicuna, prompts as in its training and evaluation scripts."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from serve.engines.base import Prompt, Spoken
from serve.errors import BadRequest, ParseError
from serve.geometry import from_padded, pad_to_square
from serve.image import Image
from serve.models.base import TOY_NOTE, Card, Checkpoint, Model, Skill, Turn, sampling
from serve.models.plain import parse_caption, parse_chat, parse_vqa
from serve.tasks.base import Request
from serve.tasks.boxes import DetectResult, LabelledBox
from serve.tasks.caption import CaptionRequest
from serve.tasks.chat import ChatRequest
from serve.tasks.detect import DetectRequest
from serve.tasks.vqa import VqaRequest

# int(255 * CLIP mean): what the original pads with. The Hugging Face processor crops instead, so we pad before it.
PAD_COLOUR = (122, 116, 104)
SHORT = "\nAnswer the question using a single word or phrase."
SENTENCE = "Provide a one-sentence caption for the provided image."
REGION = "Please provide the bounding box coordinate of the region this sentence describes: "
_NUMBER = r"(\d+(?:\.\d+)?|\.\d+)"
_BOX = re.compile(rf"\[\s*{_NUMBER}\s*,\s*{_NUMBER}\s*,\s*{_NUMBER}\s*,\s*{_NUMBER}\s*\]")


def user(text: str) -> str:
    """The published single-turn prompt."""
    return f"USER: <image>\n{text} ASSISTANT:"


def converse(turns: Sequence[Turn]) -> str:
    """The published multi-turn form: `USER: <image>\\nq ASSISTANT: a</s>USER: q ASSISTANT:`, a system text first."""
    prompt = ""
    for at, turn in enumerate(turns):
        param = f"messages[{at}]"
        if turn.role == "system":
            if at:
                raise BadRequest("A system message must come first.", param=param)
            prompt += f"{turn.text} "
        elif turn.role == "user":
            prompt += f"USER: {'<image>' * turn.pictured}{chr(10) * turn.pictured}{turn.text} ASSISTANT:"
        else:
            prompt += f" {turn.text}</s>"
    if not turns or turns[-1].role != "user":
        raise BadRequest("The last message must be the user's.", param="messages")
    return prompt


def single_turn(turns: Sequence[Turn]) -> str:
    """`converse` for a checkpoint that has only ever seen one question about one picture."""
    if len(turns) != 1 or not turns[0].pictured:
        raise BadRequest(
            "This model answers one question about one image: no history, no text alone.", param="messages"
        )
    return converse(turns)


def prepare(image: Image) -> Image:
    return pad_to_square(image, PAD_COLOUR)


def _ask(request: Request, text: str, max_tokens: int) -> list[Prompt]:
    return [Prompt(user(text), request.image, sampling(request, max_tokens))]


def ask_vqa(request: VqaRequest) -> list[Prompt]:
    return _ask(request, request.question + SHORT, 32)


def ask_caption(request: CaptionRequest) -> list[Prompt]:
    if request.lang != "en":
        raise BadRequest("LLaVA-1.5 was trained to caption in English only.", param="lang")
    return _ask(request, SENTENCE, 96)


def ask_chat(request: ChatRequest) -> list[Prompt]:
    return _ask(request, request.question, 512)


def ask_detect(request: DetectRequest) -> list[Prompt]:
    """One box for one phrase is what it was trained on (RefCOCO, Visual Genome): one prompt a phrase."""
    return [prompt for label in request.labels for prompt in _ask(request, REGION + label, 48)]


def parse_detect(spoken: Sequence[Spoken], request: DetectRequest) -> DetectResult:
    """`[x0, y0, x1, y1]` in fractions of the padded square -> pixels. Raises ParseError when no phrase got a box."""
    boxes = []
    for label, said in zip(request.labels, spoken, strict=True):
        match = _BOX.search(said.text)
        if match is None:
            continue
        x0, y0, x1, y1 = (float(number) for number in match.groups())
        if max(x0, y0, x1, y1) > 1:
            continue
        box = from_padded((x0, y0, x1, y1), request.image.width, request.image.height)
        if box[2] > box[0] and box[3] > box[1]:
            boxes.append(LabelledBox(label=label, box=box, score=said.confidence(*match.span())))
    if not boxes:
        raise ParseError("The reply holds no box of the form [x0, y0, x1, y1] inside the image.")
    return DetectResult(boxes=boxes)


SKILLS = {
    "vqa": Skill(ask_vqa, parse_vqa),
    "caption": Skill(ask_caption, parse_caption),
    "detect": Skill(ask_detect, parse_detect),
    "chat": Skill(ask_chat, parse_chat),
}

_LLAVA_15 = Card(
    organization="University of Wisconsin-Madison and Microsoft Research",
    category="General vision-language assistant",
    modality="image and text in, text out",
    released="2023-10-05",
    context_window=4096,
    parameters=7_063_427_072,
    licence="Llama 2 Community License",
    tasks=("vqa", "caption", "chat", "ocr (prompted)", "detect (one box a phrase)"),
    features=("multi-turn conversation", "system message", "region coordinates in text"),
    links=("https://arxiv.org/abs/2310.03744", "https://huggingface.co/llava-hf/llava-1.5-7b-hf"),
    about="Visual instruction tuning: a CLIP ViT-L/14 at 336 pixels, a two-layer projector and Vicuna v1.5.",
)
_ENGINE = {"max_model_len": 4096, "limit_mm_per_prompt": {"image": 1}}

MODELS = [
    Model(
        name="llava-1.5-7b",
        checkpoint=Checkpoint("llava-hf/llava-1.5-7b-hf"),
        card=_LLAVA_15,
        skills=SKILLS,
        converse=converse,
        prepare=prepare,
        engine=_ENGINE,
    ),
    Model(
        name="llava-1.5-13b",
        checkpoint=Checkpoint("llava-hf/llava-1.5-13b-hf"),
        card=dataclasses.replace(
            _LLAVA_15,
            parameters=13_351_494_656,
            links=("https://arxiv.org/abs/2310.03744", "https://huggingface.co/llava-hf/llava-1.5-13b-hf"),
        ),
        skills=SKILLS,
        converse=converse,
        prepare=prepare,
        engine=_ENGINE,
    ),
    Model(
        name="toy-llava",
        checkpoint=Checkpoint(str(Path(__file__).parents[1] / "toy" / "llava")),
        card=Card(
            organization="Diptych",
            category="Toy: drawn shapes only",
            modality="image and text in, text out",
            released="2026-11-23",
            context_window=256,
            parameters=2_441_312,
            licence="Apache-2.0",
            tasks=("vqa", "caption", "chat", "ocr (listed words)", "detect (one box a phrase)"),
            features=("LLaVA-1.5 architecture", "runs on a laptop's CPU"),
            about=TOY_NOTE,
            toy=True,
        ),
        skills=SKILLS,
        converse=single_turn,
        prepare=prepare,
        engine={"max_model_len": 256, "limit_mm_per_prompt": {"image": 1}},
    ),
]
