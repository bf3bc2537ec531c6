"""Declares a family of chat models: the card that its sizes share, what each size has of its own, and its tasks.

    MODELS = family(
        Card(organization="Qwen", ..., parameters=None, tasks=(), ...),
        [Size("qwen3-vl-8b", "Qwen/Qwen3-VL-8B-Instruct", 8_767_123_696, CacheShape(36, 8, 128)), ...],
        native=("vqa", "caption", "ocr", "chat", "detect"),
        skills={"detect": detect_all(chat_messages, QWEN3_VL, locate)},
        expect={"architectures": ["Qwen3VLForConditionalGeneration"]},
    )

Prompts are messages, which the engine writes with the checkpoint's own chat template. Every task with an instruction
is done as it says (`instructed_skills`), where the family has no skill of its own for it; a family that detects points
to the centres of its boxes.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from serve.engines.chat_settings import LONGEST, ChatSettings
from serve.errors import BadRequest
from serve.media.image import Image
from serve.models.base import CHECKED, Card, Checkpoint, Model, Skill, unchanged
from serve.models.contracts import MOST_OBLONG, Contract
from serve.models.derived import points_of_boxes
from serve.models.hardware import CacheShape, hardware
from serve.models.instructed import chat_messages, instructed_skills
from serve.models.reasoning import Reasoning
from serve.tasks import TASKS

HUB = "https://huggingface.co/"


@dataclass(frozen=True)
class Size:
    """A model of a family, with what the others do not share.

    cache_shape: of the layers that keep keys and values. revision: a commit that is known for certain, else None.
    expect: values of its config.json, besides the family's. card: fields of its card in place of the family's.
    """

    name: str
    hub: str
    parameters: int
    cache_shape: CacheShape
    revision: str | None = None
    gated: bool = False
    expect: Mapping[str, Any] = field(default_factory=dict)
    card: Mapping[str, Any] = field(default_factory=dict)


def family(
    card: Card,
    sizes: Sequence[Size],
    *,
    native: Collection[str],
    prompted: Collection[str] | None = None,
    skills: Mapping[str, Skill] | None = None,
    boxes: Contract | None = None,
    expect: Mapping[str, Any] | None = None,
    family_args: Mapping[str, Any] | None = None,
    prepare: Callable[[Image], Image] = unchanged,
    reasoning: Reasoning | None = None,
    chat: ChatSettings | None = None,
    tools: str | None = None,
) -> list[Model]:
    """Return the models of a family, which share their skills.

    card: its parameters, tasks and hardware are filled in for each size, its links get the repository; `checked` is
    CHECKED where it is empty. native: the tasks that the family was trained for; it is told to do all others.
    prompted: of those, the ones that it does; None: all. skills: its own prompts and parsers, by task. boxes: the
    contract for boxes that it is told to write, where `skills` has no detection. expect: as in Checkpoint. family_args:
    further ones, as in Model. prepare, reasoning, chat, tools: as in Model.
    """
    known = {**instructed_skills(chat_messages, boxes=boxes), **(skills or {})}
    if "detect" in known and "point" not in (skills or {}):
        known["point"] = points_of_boxes(known["detect"])
    done = {
        task: dataclasses.replace(known[task], basis="native") if task in native else known[task]
        for task in TASKS
        if task in known and (prompted is None or task in native or task in prompted)
    }
    return [
        Model(
            name=size.name,
            checkpoint=Checkpoint(size.hub, size.revision, size.gated, {**(expect or {}), **size.expect}),
            card=_card(card, size, done),
            skills=done,
            converse=chat_messages,
            prepare=prepare,
            family_args={"max_model_len": _longest(card, size), **(family_args or {})},
            reasoning=reasoning,
            chat=chat or ChatSettings(),
            tools=tools,
        )
        for size in sizes
    ]


def refuse_oblong(image: Image) -> Image:
    """Return the image: `prepare` of a family whose processor takes none that is too oblong. Raises BadRequest."""
    if max(image.width, image.height) > MOST_OBLONG * min(image.width, image.height):
        raise BadRequest(
            f"An image of {image.width} x {image.height} pixels is too oblong for this model: one side may be at most "
            f"{MOST_OBLONG} times as long as the other.",
            param="image",
            code="image_too_oblong",
        )
    return image


def _card(card: Card, size: Size, skills: Mapping[str, Skill]) -> Card:
    filled = dataclasses.replace(
        card,
        parameters=size.parameters,
        tasks=tuple(task if skill.basis == "native" else f"{task} ({skill.basis})" for task, skill in skills.items()),
        links=(*card.links, HUB + size.hub),
        hardware=card.hardware or hardware(size.parameters, size.cache_shape, _longest(card, size)),
        checked=card.checked or CHECKED,
    )
    return dataclasses.replace(filled, **size.card)


def _longest(card: Card, size: Size) -> int:
    """Return the longest sequence that is served where the deployment sets none, in tokens."""
    return min(size.card.get("context_window", card.context_window) or LONGEST, LONGEST)
