"""Prompts and parsers for models that do a task because they are told to: today's instruction-tuned chat models."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from serve.engines.base import Generation, Prompt
from serve.models.base import Skill, Turn, task_sampling
from serve.models.text_replies import parse_caption, parse_chat, parse_text, parse_vqa
from serve.tasks.base import Request
from serve.tasks.caption import CaptionRequest
from serve.tasks.chat import ChatRequest
from serve.tasks.ocr import OcrRequest, OcrResult
from serve.tasks.vqa import VqaRequest

SHORT = "\nAnswer the question using a single word or phrase."
SENTENCE = "Describe the image in one sentence. Write that sentence only."
NO_TEXT = "(no text)"
READ = (
    "Read all text in the image, from top to bottom, with a line for each line of the image. Write that text only. "
    f"If there is none, write {NO_TEXT}"
)
LANGUAGE = " Write it in the language of the ISO 639 code {}."
BY_CONFIDENCE = frozenset({"vqa", "ocr"})
"""Tasks with a merge method that weighs a reply by its confidence. In others confidence decides ties at most."""


def instructed_skills(converse: Callable[[Sequence[Turn]], str], *, logprobs: bool = True) -> Mapping[str, Skill]:
    """Return the skills, by task.

    converse: as in Model. logprobs: whether the model's server gives log-probabilities; they are asked for where
    merging weighs by them. Detection is missing: nothing says in which form and scale such a model writes a box. A
    family that declares its coordinate contract adds it.
    """

    def ask(task: str, request: Request, text: str, max_tokens: int) -> list[Prompt]:
        sampling = replace(task_sampling(request, max_tokens), logprobs=logprobs and task in BY_CONFIDENCE)
        return [Prompt(converse([Turn("user", text, has_image=True)]), request.image, sampling)]

    def ask_vqa(request: VqaRequest) -> list[Prompt]:
        return ask("vqa", request, request.question + SHORT + _language(request.lang), 64)

    def ask_caption(request: CaptionRequest) -> list[Prompt]:
        return ask("caption", request, SENTENCE + _language(request.lang), 128)

    def ask_ocr(request: OcrRequest) -> list[Prompt]:
        return ask("ocr", request, READ, 1024)

    def ask_chat(request: ChatRequest) -> list[Prompt]:
        return ask("chat", request, request.question, 1024)

    return {
        "vqa": Skill(ask_vqa, parse_vqa),
        "caption": Skill(ask_caption, parse_caption),
        "ocr": Skill(ask_ocr, parse_reading),
        "chat": Skill(ask_chat, parse_chat),
    }


def parse_reading(generations: Sequence[Generation], request: OcrRequest) -> OcrResult:
    """Return the text that was read; none where the reply is NO_TEXT. Raises as `parse_text`."""
    text = parse_text(generations, request).text
    return OcrResult(text="" if text.rstrip(".").casefold() in (NO_TEXT, NO_TEXT.strip("()")) else text)


def _language(code: str) -> str:
    return "" if code == "en" else LANGUAGE.format(code)
