"""The prompts of Qwen's vision-language models for each task: those of their makers' evaluations and cookbooks."""

from collections.abc import Mapping, Sequence

from serve.models.base import Skill
from serve.models.contracts import Contract
from serve.models.instructed import chat_messages, detect_all, worded_skill
from serve.tasks.ocr import OcrRequest
from serve.tasks.vqa import VqaRequest, language_clause

NATIVE = ("vqa", "caption", "ocr", "chat", "detect")
SHORT = "\nPlease try to answer the question with short words or phrases if possible."
READ = "Read all texts in the image, output in lines."
LOCATE = "Locate every instance that belongs to the following categories: '{}'. Report bbox coordinates in JSON format."


def qwen_skills(boxes: Contract) -> Mapping[str, Skill]:
    """Return the skills that have words of their own, by task. boxes: the contract of a generation's boxes."""
    return {
        "vqa": worded_skill("vqa", _question),
        "ocr": worded_skill("ocr", _read),
        "detect": detect_all(chat_messages, boxes, _locate),
    }


def _question(request: VqaRequest) -> str:
    return request.question + SHORT + language_clause(request.lang)


def _read(request: OcrRequest) -> str:
    return READ


def _locate(phrases: Sequence[str]) -> str:
    return LOCATE.format(", ".join(phrases))
