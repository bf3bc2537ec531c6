"""The catalogue: every model's card, served or not, and the table that compares some of them."""

import dataclasses
import difflib
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Literal

from pydantic import BaseModel

from serve.errors import BadRequest, NotFound
from serve.models import MODELS
from serve.models.base import Basis, Model, Price
from serve.models.check_report import CheckReport, contract_of, refusal
from serve.models.contracts import Contract
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
"""The rows of the comparison: a card's field and its title."""

NOT_STATED = "not stated"
MAX_COMPARED = 64
MAX_NAME = 200
"""Longest name that is looked up, in characters; longer ones are cut."""

OLDER_NAMES = {"llava-next": "llava-v1-6", "llava-1-6": "llava-v1-6"}
"""Other names of families, with dots as hyphens: LLaVA-NeXT's checkpoints are named v1.6."""


class Entry(BaseModel):
    """A model of the catalogue.

    tasks: those it was trained for. skills: those that it can do here. bases: how it does each of them: native, it was
    trained to; prompted, it is told to in words; derived, from its results of another task. images, videos: whether it
    takes them here.
    hardware: computed, as text. revision: the commit that is served. remote: whether images and questions for it go to
    another server. contract: how it writes the coordinates of boxes, declared or found by its check. check: the report
    of its check, where it was checked here when it started.
    """

    id: str
    object: Literal["diptych.card"] = "diptych.card"
    served: bool
    organization: str
    category: str
    modality: str
    released: str
    context_window: int | None
    parameters: int | None
    licence: str
    tasks: list[str]
    features: list[str]
    skills: list[str]
    bases: dict[str, Basis]
    links: list[str]
    about: str
    overview: list[str]
    hardware: str
    checked: str
    images: bool
    videos: bool
    toy: bool
    remote: bool
    price: Price | None
    checkpoint: str | None
    revision: str | None
    gated: bool
    contract: Contract | None = None
    check: CheckReport | None = None


class Catalogue(BaseModel):
    object: Literal["list"] = "list"
    data: list[Entry]


class ComparisonRow(BaseModel):
    """A row of the comparison, with one value per model in the order of the request."""

    name: str
    title: str
    values: list[str | int | list[str]]
    differs: bool


class SkillRow(BaseModel):
    """A task, and those of the compared models that can do it. bases: how each of them does."""

    task: str
    title: str
    models: list[str]
    bases: list[Basis]


class SkillTable(BaseModel):
    """Tasks that all compared models can do, and tasks that only some can do."""

    shared: list[SkillRow]
    unshared: list[SkillRow]


class Comparison(BaseModel):
    object: Literal["diptych.comparison"] = "diptych.comparison"
    models: list[str]
    served: list[str]
    rows: list[ComparisonRow]
    tasks: SkillTable


Reports = Mapping[str, CheckReport]
NO_REPORTS: Reports = MappingProxyType({})


def catalogue(served: Mapping[str, Model], reports: Reports = NO_REPORTS) -> Catalogue:
    """Return every known model's card; those of served models are marked. reports: of checks, by model."""
    return Catalogue(data=[_entry(model, name in served, reports.get(name)) for name, model in known(served).items()])


def compare_models(names: Sequence[str], served: Mapping[str, Model], reports: Reports = NO_REPORTS) -> Comparison:
    """Return the comparison of some models, in the order given; `llava-1.5` is short for `llava-1.5-7b`.

    reports: of checks, by model; a row of the table has them where one of the models has one.
    Raises NotFound naming a model that is not in the catalogue, BadRequest for more than MAX_COMPARED names.
    """
    models = known(served)
    names = list(dict.fromkeys(names))
    if len(names) > MAX_COMPARED:
        raise BadRequest(f"At most {MAX_COMPARED} models are compared.", param="models")
    names = [_completed(name[:MAX_NAME], models, served) for name in names]
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
    table = [_skill_row(task, chosen, reports) for task in TASKS.values()]
    rows = [_row(field, title, list(chosen.values())) for field, title in COLUMNS.items()]
    if any(name in reports for name in chosen):
        rows.append(_check_row(list(chosen), reports))
    return Comparison(
        models=list(chosen),
        served=[name for name in chosen if name in served],
        rows=rows,
        tasks=SkillTable(
            shared=[row for row in table if len(row.models) == len(chosen)],
            unshared=[row for row in table if 0 < len(row.models) < len(chosen)],
        ),
    )


def known(served: Mapping[str, Model]) -> dict[str, Model]:
    """Return the catalogue in its order, then served models that are not in it."""
    return {**MODELS, **served}


def task_names(model: Model, report: CheckReport | None = None) -> list[str]:
    """Return the names of the tasks that a model can do, in the order of TASKS; without those its check turned off."""
    off = {name for name in model.skills if report is not None and refusal(model, name, report) is not None}
    return [name for name in TASKS if name in model.skills and name not in off]


def _completed(name: str, models: Mapping[str, Model], served: Collection[str]) -> str:
    """Complete the beginning of a model's name; return it unchanged where no model matches.

    Of several models prefer a served one, then the PaliGemma at 448 pixels that was tuned on a mixture of tasks (the
    `pt` checkpoints are meant for fine-tuning), then the first of the catalogue.
    """
    if name in models:
        return name
    prefix = OLDER_NAMES.get(plain := name.replace(".", "-"), plain)
    matches = [model for model in models if f"{model}-".replace(".", "-").startswith(f"{prefix}-")]
    matches.sort(key=lambda model: (model not in served, not model.endswith("-mix-448")))
    return matches[0] if matches else name


def _entry(model: Model, served: bool, report: CheckReport | None) -> Entry:
    card, checkpoint = model.card, model.checkpoint
    private = card.toy or card.remote or is_folder(checkpoint.hub)  # the path of a folder, the name at a server
    return Entry(
        id=model.name,
        served=served,
        **dataclasses.asdict(card),
        skills=(skills := task_names(model, report)),
        bases={task: model.skills[task].basis for task in skills},
        images=model.images,
        videos=model.videos,
        checkpoint=None if private else checkpoint.hub,
        revision=checkpoint.revision,
        gated=checkpoint.gated,
        contract=contract_of(model, report),
        check=report,
    )


def is_folder(checkpoint: str) -> bool:
    """Return whether a checkpoint's name is a folder of this machine, and not a hub id."""
    return checkpoint.startswith(("/", ".", "~")) or checkpoint.count("/") != 1


def _row(field: str, title: str, models: Sequence[Model]) -> ComparisonRow:
    values = [getattr(model.card, field) for model in models]
    return ComparisonRow(
        name=field,
        title=title,
        values=[
            list(value) if isinstance(value, tuple) else NOT_STATED if value is None else value for value in values
        ],
        differs=len({_comparable(value) for value in values}) > 1,
    )


def _comparable(value: object) -> object:
    return frozenset(value) if isinstance(value, Collection) and not isinstance(value, str) else value


def _check_row(names: Sequence[str], reports: Reports) -> ComparisonRow:
    values: list[str | int | list[str]] = [
        reports[name].summary if name in reports else "not checked here" for name in names
    ]
    outcomes = {reports[name].outcome if name in reports else None for name in names}
    return ComparisonRow(name="check", title="Check of its answers", values=values, differs=len(outcomes) > 1)


def _skill_row(task: Task, models: Mapping[str, Model], reports: Reports) -> SkillRow:
    able = [name for name, model in models.items() if task.name in task_names(model, reports.get(name))]
    bases = [models[name].skills[task.name].basis for name in able]
    return SkillRow(task=task.name, title=task.title, models=able, bases=bases)
