"""The catalogue: every model's card, served or not, and the table that compares some of them."""

import dataclasses
import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from pydantic import BaseModel

from serve.errors import BadRequest, NotFound
from serve.models import MODELS
from serve.models.base import Model
from serve.tasks import TASKS
from serve.tasks.base import Task

COLUMNS = {
    "organization": "Organization",
    "category": "Category",
    "modality": "Modality",
    "released": "Release date",
    "context_window": "Context window",
    "parameters": "Parameters",
    "licence": "Licence",
    "tasks": "Vision tasks",
    "features": "Model features",
    "hardware": "Hardware",
    "checked": "Checked on",
}
"""The rows of the comparison: a card's field and how a person calls it."""

MAX_COMPARED = 64
MAX_NAME = 200
"""Characters of a name that are looked at: no model's is as long."""

OLDER_NAMES = {"llava-next": "llava-v1-6", "llava-1-6": "llava-v1-6"}
"""What a family is also called, dots as hyphens: LLaVA-NeXT's checkpoints are named v1.6."""


class Entry(BaseModel):
    """One model of the catalogue. tasks: what it was trained for; skills: the tasks that can be asked of it here;
    images, videos: what it is shown here; hardware: computed, in words; revision: the commit that is served."""

    id: str
    object: Literal["diptych.card"] = "diptych.card"
    served: bool
    organization: str
    category: str
    modality: str
    released: str
    context_window: int
    parameters: int
    licence: str
    tasks: list[str]
    features: list[str]
    skills: list[str]
    links: list[str]
    about: str
    hardware: str
    checked: str
    images: bool
    videos: bool
    toy: bool
    checkpoint: str | None
    revision: str | None
    gated: bool


class Catalogue(BaseModel):
    object: Literal["list"] = "list"
    data: list[Entry]


class Row(BaseModel):
    """One row of the comparison: a value per model, in the order asked for."""

    name: str
    title: str
    values: list[str | int | list[str]]
    differs: bool


class SkillRow(BaseModel):
    """Which of the compared models can be asked one task."""

    task: str
    title: str
    models: list[str]


class SkillTable(BaseModel):
    """Tasks that all compared models can be asked, and those that only some can."""

    shared: list[SkillRow]
    unshared: list[SkillRow]


class Comparison(BaseModel):
    object: Literal["diptych.comparison"] = "diptych.comparison"
    models: list[str]
    served: list[str]
    rows: list[Row]
    tasks: SkillTable


def catalogue(served: Mapping[str, Model]) -> Catalogue:
    """Every known card; those of served models are marked."""
    return Catalogue(data=[_entry(model, name in served) for name, model in known(served).items()])


def compare(names: Sequence[str], served: Mapping[str, Model]) -> Comparison:
    """The comparison table of some models, in the order given; `llava-1.5` is short for `llava-1.5-7b`.

    Raises NotFound naming what is not in the catalogue, BadRequest for more than MAX_COMPARED names.
    """
    models = known(served)
    names = list(dict.fromkeys(names))
    if len(names) > MAX_COMPARED:
        raise BadRequest(f"At most {MAX_COMPARED} models are compared.", param="models")
    names = [_whole(name[:MAX_NAME], models, served) for name in names]
    for name in names:
        if name not in models:
            near = difflib.get_close_matches(name[:MAX_NAME], models, cutoff=0.4)
            raise NotFound(
                f"There is no model {name[:200]!r} in the catalogue"
                + (f"; near it: {', '.join(near)}." if near else ".")
                + f" GET /v1/catalog lists all {len(models)}, and so does diptych models.",
                param="models",
                code="model_not_found",
            )
    chosen = {name: models[name] for name in names}  # a name given twice is one column
    table = [_skill_row(task, chosen) for task in TASKS.values()]
    return Comparison(
        models=list(chosen),
        served=[name for name in chosen if name in served],
        rows=[_row(field, title, list(chosen.values())) for field, title in COLUMNS.items()],
        tasks=SkillTable(
            shared=[row for row in table if len(row.models) == len(chosen)],
            unshared=[row for row in table if 0 < len(row.models) < len(chosen)],
        ),
    )


def known(served: Mapping[str, Model]) -> dict[str, Model]:
    """The catalogue, in its order; a served model that is not in it (a test's, a private one) comes last."""
    return {**MODELS, **served}


def skills(model: Model) -> list[str]:
    """The tasks that can be asked of a model, in the order of tasks."""
    return [name for name in TASKS if name in model.skills]


def _whole(name: str, models: Mapping[str, Model], served: Collection[str]) -> str:
    """A model's name from its beginning: of several one that is served, else PaliGemma's at 448 pixels that was tuned
    on a mixture of tasks (the `pt` are there to be fine-tuned), else the first of the catalogue."""
    if name in models:
        return name
    begun = OLDER_NAMES.get(plain := name.replace(".", "-"), plain)
    found = [known for known in models if f"{known}-".replace(".", "-").startswith(f"{begun}-")]
    found.sort(key=lambda known: (known not in served, not known.endswith("-mix-448")))
    return found[0] if found else name


def _entry(model: Model, served: bool) -> Entry:
    card, checkpoint = model.card, model.checkpoint
    return Entry(
        id=model.name,
        served=served,
        **dataclasses.asdict(card),
        skills=skills(model),
        images=model.images,
        videos=model.videos,
        checkpoint=None if card.toy or is_folder(checkpoint.hub) else checkpoint.hub,  # a folder is nobody's business
        revision=checkpoint.revision,
        gated=checkpoint.gated,
    )


def is_folder(checkpoint: str) -> bool:
    """Whether a checkpoint's name is that of a folder on this machine, and no hub id."""
    return checkpoint.startswith(("/", ".", "~")) or checkpoint.count("/") != 1


def _row(field: str, title: str, models: Sequence[Model]) -> Row:
    values = [getattr(model.card, field) for model in models]
    return Row(
        name=field,
        title=title,
        values=[list(value) if isinstance(value, tuple) else value for value in values],
        differs=len({_comparable(value) for value in values}) > 1,
    )


def _comparable(value: object) -> object:
    return frozenset(value) if isinstance(value, Collection) and not isinstance(value, str) else value


def _skill_row(task: Task, models: Mapping[str, Model]) -> SkillRow:
    able = [name for name, model in models.items() if task.name in model.skills]
    return SkillRow(task=task.name, title=task.title, models=able)
