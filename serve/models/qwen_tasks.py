"""The prompts of Qwen's vision-language models for each task, and the fields that their cards share.

The prompts are those of their makers' evaluations and cookbooks.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from serve.models.base import Card, Skill
from serve.models.contracts import Contract
from serve.models.derived import count_of_points
from serve.models.instructed import chat_messages, detect_all, point_skill, worded_skill
from serve.models.spotting import spotting_skill
from serve.tasks.ocr import OcrRequest
from serve.tasks.vqa import VqaRequest, language_clause

NATIVE = ("vqa", "caption", "ocr", "chat", "detect", "point")
SHORT = "\nPlease try to answer the question with short words or phrases if possible."
READ = "Read all texts in the image, output in lines."
SPOT = "Spotting all the text in the image with line-level, and output in JSON format."
LOCATE = "Locate every instance that belongs to the following categories: '{}'. Report bbox coordinates in JSON format."
POINT = (
    "Locate every instance that belongs to the following categories with points: '{}'. Report their point coordinates "
    'in JSON format like this: {{"point_2d": [x, y], "label": "..."}}'
)


def qwen_card(*features: str, **fields: Any) -> Card:
    """Return a generation's card. features: those that the others do not all have."""
    return Card(
        organization="Alibaba Cloud (Qwen)",
        category="General vision-language assistant",
        modality="image and text in, text out",
        parameters=None,
        licence="Apache-2.0",
        tasks=(),
        features=("pictures in their own size and shape", *features, "multi-turn conversation", "system message"),
        **fields,
    )


def qwen_skills(boxes: Contract, points: Contract) -> Mapping[str, Skill]:
    """Return the skills that have words of their own, by task. boxes, points: the contracts of a generation's.

    They count by their points, as the cookbook has it.
    """
    point = point_skill(chat_messages, points, own=_point)
    return {
        "vqa": worded_skill("vqa", _question),
        "ocr": spotting_skill(worded_skill("ocr", _read), boxes, SPOT),
        "detect": detect_all(chat_messages, boxes, _locate),
        "point": point,
        "count": count_of_points(point),
    }


def _question(request: VqaRequest) -> str:
    return request.question + SHORT + language_clause(request.lang)


def _read(request: OcrRequest) -> str:
    return READ


def _locate(phrases: Sequence[str]) -> str:
    return LOCATE.format(", ".join(phrases))


def _point(phrases: Sequence[str]) -> str:
    return POINT.format(", ".join(phrases))
