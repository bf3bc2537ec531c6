"""GLM-4.1V, 4.5V and 4.6V (arXiv 2507.01006): models that reason; answers, and boxes in thousandths, between tags."""

import re

from serve.models.base import Card
from serve.models.contracts import GLM4V
from serve.models.derived import points_of_boxes
from serve.models.family import Size, family
from serve.models.hardware import CacheShape
from serve.models.instructed import chat_messages, detect_each, worded_skill
from serve.models.reasoning import THINK, Reasoning
from serve.models.tool_calls import GLM

LOCATE = (
    "Please pinpoint the bounding box [[x1,y1,x2,y2], …] in the image as per the given description. {}"  # the README's
)
_BOXED = re.compile(r"<\|begin_of_box\|>(.*?)(?:<\|end_of_box\|>|$)", re.DOTALL)
_TAG = re.compile(r"<\|[a-z_]{1,40}\|>|</?answer>")
NATIVE = ("vqa", "caption", "ocr", "chat", "detect")
GLM_9B = CacheShape(layers=40, heads=2, width=128)
GLM_AIR = CacheShape(layers=46, heads=8, width=128)


def answer(text: str) -> str:
    """Return what a reply has between its tags, the last of several; without any the text."""
    boxed = [inner for inner in _BOXED.findall(text) if inner.strip()]
    return boxed[-1] if boxed else without_tags(text)


def without_tags(text: str) -> str:
    return _TAG.sub("", text)


DETECT = detect_each(chat_messages, GLM4V, LOCATE.format)
SKILLS = {
    **{task: worded_skill(task, clean=answer, special_tokens=True) for task in ("vqa", "count")},
    **{task: worded_skill(task, clean=without_tags) for task in ("caption", "ocr", "chat")},
    "detect": DETECT,
    "point": points_of_boxes(DETECT),
}


def _card(reasoning: str, released: str, about: str) -> Card:
    return Card(
        organization="Z.ai (Zhipu AI) and Tsinghua University",
        category="Vision-language model that reasons",
        modality="image and text in, text out",
        released=released,
        context_window=65_536,
        parameters=None,
        licence="MIT",
        tasks=(),
        features=("pictures in their own shape", "boxes in thousandths", reasoning, "multi-turn conversation"),
        links=("https://arxiv.org/abs/2507.01006",),
        about=about,
        overview=(
            "GLM-4.1V, 4.5V and 4.6V join a vision transformer for pictures of any shape to GLM-4-9B or to the "
            "mixture of experts GLM-4.5-Air. They are trained to reason before they answer, by reinforcement "
            "learning whose examples are chosen by what the model can do so far: science, charts, documents, "
            "screens, finding things.",
            "They are made for problems of several steps, for long documents and for finding what is described, in "
            "boxes. Reasoning takes time: GLM-4.1V always does it, the others where a request asks. Their "
            "answers stand between tags, which are taken out here. GLM-4.6V brought longer contexts and tools; "
            "GLM-5V-Turbo, after it, is a service.",
        ),
    )


MODELS = [
    *family(
        _card("reasons before each answer", "2025-07-01", "GLM-4-9B with a vision transformer, trained to reason."),
        [Size("glm-4.1v-9b-thinking", "zai-org/GLM-4.1V-9B-Thinking", 10_292_777_472, GLM_9B)],
        native=NATIVE,
        skills=SKILLS,
        expect={"architectures": ["Glm4vForConditionalGeneration"]},
        reasoning=Reasoning((THINK,), on=True),
    ),
    *family(
        _card("reasoning, off unless a request says otherwise", "2025-12-08", ""),
        [
            Size(
                "glm-4.6v-flash",
                "zai-org/GLM-4.6V-Flash",
                10_292_777_472,
                GLM_9B,
                card={"context_window": 131_072, "about": "The small model of GLM-4.6V, of GLM-4.1V's shape."},
            ),
            Size(
                "glm-4.5v",
                "zai-org/GLM-4.5V",
                107_744_743_936,
                GLM_AIR,
                expect={"architectures": ["Glm4vMoeForConditionalGeneration"]},
                card={
                    "released": "2025-08-11",
                    "about": "GLM-4.5-Air, a mixture of 128 experts, and GLM-4.1V's encoder.",
                },
            ),
            Size(
                "glm-4.6v",
                "zai-org/GLM-4.6V",
                107_744_743_936,
                GLM_AIR,
                expect={"architectures": ["Glm4vMoeForConditionalGeneration"]},
                card={"context_window": 131_072, "about": "GLM-4.5V's shape, trained on longer contexts and on tools."},
            ),
        ],
        native=NATIVE,
        skills=SKILLS,
        reasoning=Reasoning((THINK,), switchable=True, on=False),
        tools=GLM,
    ),
]
