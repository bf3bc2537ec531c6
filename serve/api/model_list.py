"""Lists for GET /v1/models every name for the field `model`, in OpenAI's format."""

import datetime
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from serve.engines.base import Memory, State, Wakes
from serve.models.base import HUB_ID, Model, Price
from serve.models.catalog import task_names
from serve.models.check_report import CheckReport
from serve.rights import RIGHTS
from serve.router.route import Status
from serve.tasks import TASKS


class NameDetails(BaseModel):
    """Describes a name for the field `model`: a model, or a task that several models do."""

    kind: Literal["model", "task"]
    tasks: list[str]
    models: list[str] = Field(description="The served models behind this name.")
    state: State | None = None
    title: str | None = None
    text_field: str | None = Field(
        default=None, description="The field of a task's request for what is written beside the image."
    )
    text_title: str | None = Field(default=None, description="A title for an input of that field.")
    text_kind: Literal["text", "phrases", "json"] | None = Field(
        default=None, description="Whether that field is one text, a list of them, or JSON."
    )
    min_phrases: int | None = Field(default=None, description="How many phrases that list must have.")
    max_phrases: int | None = Field(default=None, description="How many phrases that list may have.")
    boxed: bool | None = Field(default=None, description="Whether a task's results are boxes in the image.")
    multiple: bool | None = Field(default=None, description="Whether a task's request has `multiple`.")
    places: Literal["boxes", "points"] | None = Field(
        default=None, description="The field of a task's result that holds objects with their places in the image."
    )
    example: Mapping[str, Any] | None = Field(default=None, description="A task's typical request, without the image.")
    memory: Memory | None = Field(default=None, description="Of the model's engine, once it runs.")
    wakes: Wakes | None = Field(
        default=None,
        description="How often a model woke that shares memory with others, and how long the last time took.",
    )
    tools: bool = Field(default=False, description="Whether the model calls functions (`tools`).")
    remote: bool = Field(default=False, description="Whether images and questions for it go to another server.")
    price: Price | None = Field(default=None, description="Of a million tokens, where the operator gave it.")
    check: CheckReport | None = Field(default=None, description="Of the model, where it was checked when it started.")
    about: str | None = Field(default=None, description="What to know about the model, for example that it is a toy.")


class ModelEntry(BaseModel):
    """OpenAI's model object."""

    model_config = ConfigDict(protected_namespaces=())

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    root: str = Field(description="The checkpoint's repository, or the name itself.")
    parent: str | None = Field(default=None, description="The model whose LoRA adapter it is.")
    max_model_len: int | None = Field(
        description="Tokens of a prompt and its reply together, of a task the least of its models'; null: not known."
    )
    diptych: NameDetails


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelEntry]


def model_list(served: Mapping[str, Model], statuses: Mapping[str, Status]) -> ModelList:
    """List the served models, then the tasks that they can do and the current request's key may ask."""
    reports = {name: status.report for name, status in statuses.items() if status.report is not None}
    entries = [
        ModelEntry(
            id=name,
            created=_timestamp(model.card.released),
            owned_by=model.card.organization,
            root=_repository(model) or name,
            parent=model.base if model.base in served else None,
            max_model_len=max_model_len(model),
            diptych=NameDetails(
                kind="model",
                tasks=RIGHTS.get().allowed_tasks(task_names(model, reports.get(name))),
                models=[name],
                state=statuses[name].state if name in statuses else None,
                memory=statuses[name].memory if name in statuses else None,
                wakes=statuses[name].wakes if name in statuses else None,
                tools=model.tools is not None,
                remote=model.card.remote,
                price=model.card.price,
                check=reports.get(name),
                about=model.card.about,
            ),
        )
        for name, model in served.items()
    ]
    for task in TASKS.values():
        able = [name for name, model in served.items() if task.name in task_names(model, reports.get(name))]
        if able and task.name not in served and RIGHTS.get().allowed_tasks([task.name]):
            text = task.text_field
            task_details = NameDetails(
                kind="task",
                tasks=[task.name],
                models=able,
                title=task.title,
                text_field=text.name if text else None,
                text_title=text.title if text else None,
                text_kind=text.kind if text else None,
                min_phrases=task.min_phrases,
                max_phrases=task.max_phrases,
                boxed=task.boxed,
                multiple="multiple" in task.request.model_fields,
                places=task.places,
                example=task.example,
            )
            lengths = [length for name in able if (length := max_model_len(served[name])) is not None]
            entries.append(
                ModelEntry(
                    id=task.name,
                    created=0,
                    owned_by="diptych",
                    root=task.name,
                    max_model_len=min(lengths, default=None),
                    diptych=task_details,
                )
            )
    return ModelList(data=entries)


def max_model_len(model: Model) -> int | None:
    """Return the length of a model's context as it is served, in tokens; None where that is not known."""
    length = model.family_args.get("max_model_len", model.card.context_window)
    return length if isinstance(length, int) else None


def _repository(model: Model) -> str | None:
    """Return the checkpoint's repository; None for a folder or another place, which are the operator's own."""
    return model.checkpoint.hub if HUB_ID.fullmatch(model.checkpoint.hub) and not model.card.remote else None


def _timestamp(released: str) -> int:
    """Return a card's date as a Unix timestamp; 0 where the date has no day."""
    try:
        day = datetime.date.fromisoformat(released)
    except ValueError:
        return 0
    return int(datetime.datetime.combine(day, datetime.time(), datetime.UTC).timestamp())
