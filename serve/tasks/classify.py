"""Classification: labels in, the one that fits best out, or all that are right."""

import contextlib
import json
from typing import Any

from pydantic import Field

from serve.engines.base import Generation
from serve.errors import ParseError
from serve.tasks.base import LABELS, Instruction, Task
from serve.tasks.boxes import AskedLabels
from serve.tasks.detect import DetectRequest
from serve.tasks.json_reply import read_object
from serve.tasks.merging.label_vote import label_vote
from serve.tasks.reply import CUT
from serve.tasks.scored_labels import ClassifyResult, ScoredLabel

MAX_TEXT = 16_384  # characters of a reply that are read


class ClassifyRequest(DetectRequest):
    multiple: bool = Field(default=False, description="Whether several labels may be right, or none.")


def _prompt(request: ClassifyRequest) -> str:
    labels = ", ".join(f'"{label}"' for label in request.phrases)
    if request.multiple:
        return (
            f"Which of these labels are right for the image: {labels}? Write JSON and nothing else: "
            '{"labels": ["...", ...]}, with those labels alone. If none is right, write {"labels": []}.'
        )
    return (
        f"Which one of these labels fits the image best: {labels}? Write JSON and nothing else: "
        '{"label": "..."}, with that label as it is written here.'
    )


def _schema(request: ClassifyRequest) -> str:
    choice = {"type": "string", "enum": request.phrases}
    listed = {"type": "array", "items": choice, "maxItems": len(request.phrases)}
    properties = {"labels": listed} if request.multiple else {"label": choice}
    schema = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    return json.dumps(schema)


def _read(generation: Generation, request: ClassifyRequest) -> ClassifyResult:
    """Return the labels of a reply. Raises ParseError for one that is not among those that were asked."""
    text = generation.text[:MAX_TEXT]
    start = text.find("{")
    field = "labels" if request.multiple else "label"
    names: Any = text.strip() if start < 0 and not request.multiple else None
    with contextlib.suppress(ParseError):
        names = read_object(generation, MAX_TEXT).get(field)
    names = [names] if isinstance(names, str) else names
    if (
        not isinstance(names, list)
        or not all(isinstance(name, str) for name in names)
        or not (request.multiple or len(names) == 1)
    ):
        raise ParseError(CUT if generation.cut else f'The reply is not of the form {{"{field}": ...}}.')
    asked_labels = AskedLabels(request.labels)
    labels = []
    for name in names:
        label = asked_labels.find(name, cut=generation.cut and start < 0)
        if label is None:
            raise ParseError(f"The reply names {name[:80]!r}, which is none of the labels.")
        at = text.find(name, max(start, 0))
        score = generation.confidence(at, at + len(name)) if at >= 0 and name else generation.confidence()
        labels.append(ScoredLabel(label=label, score=score))
    return ClassifyResult(labels=labels, multiple=request.multiple)


def _as_text(result: ClassifyResult) -> str:
    return "; ".join(label.label for label in result.labels) or "none of them"


CLASSIFY = Task(
    name="classify",
    title="Classification",
    known_as=("image-classification",),
    request=ClassifyRequest,
    result=ClassifyResult,
    methods={"vote": label_vote("vote"), "weighted_vote": label_vote("weighted_vote", by_confidence=True)},
    text_field=LABELS,
    example={"labels": ["circle", "star", "triangle"]},
    instruction=Instruction(_prompt, _read, max_tokens=256, schema=_schema),
    by_confidence=True,
    as_text=_as_text,
)
