"""A user's own model: a fine-tune `like` a known one, or a LoRA adapter on a served base. A few lines make a Model.

Prompts, turns, pictures, parsers and engine arguments come from the model that it is made of; what was tuned (weights,
the words of a task) replaces theirs. tests/models/test_own.py and deployments/README.md show how it is written.
"""

import dataclasses
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticKnownError

from serve.engines.base import Prompt
from serve.engines.vllm.config_check import kind
from serve.media.image import Image
from serve.models import MODELS
from serve.models.base import Card, Checkpoint, Model, Skill, Turn
from serve.models.reasoning import STYLES, Reasoning
from serve.tasks import TASKS
from serve.tasks.count import CountRequest

Words = Annotated[str, Field(min_length=1, max_length=4000)]


def _known_task(name: str) -> str:
    if name not in TASKS:
        *others, last = map(repr, TASKS)
        raise PydanticKnownError("literal_error", {"expected": f"{', '.join(others)} or {last}"})
    return name


TaskName = Annotated[str, AfterValidator(_known_task)]
Weight = Annotated[float, Field(ge=0, le=1000)]


def check_task_weights(model: str, weights: Mapping[str, float], tasks: Sequence[str]) -> None:
    """Raise ValueError for a weight in a task that the model does not do."""
    for task in weights:
        if task not in tasks:
            raise ValueError(f"task_weights: {model} does not do {task}.")


def _free(name: str) -> str:
    if name in MODELS:
        raise ValueError(f"{name!r} is a known model: give yours a name of its own.")
    if name in TASKS or name in ("gateway", "diptych"):
        raise ValueError(f"{name!r} means something else here: give your model another name.")
    return name


def _known(name: str) -> str:
    families = [known for known, model in MODELS.items() if model.engine == "vllm"]
    if name not in families:
        raise ValueError(f"There is no model {name!r} to be like. Known: {', '.join(families)}.")
    return name


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"), AfterValidator(_free)]


class OwnCard(BaseModel):
    """The card of a model of one's own. A field that is left out is taken from the model that it is made of."""

    model_config = ConfigDict(extra="forbid")

    organization: Words | None = None
    category: Words | None = None
    released: Words | None = None
    licence: Words | None = None
    about: Words | None = None
    parameters: Annotated[int, Field(ge=1)] | None = None
    features: Annotated[tuple[Words, ...], Field(min_length=1)] | None = None
    links: tuple[Words, ...] | None = None


class ReasoningSettings(BaseModel):
    """The reasoning of a model, where a request does not say.

    style: the marks around it, of a fine-tune that reasons although the model it is made of does not, or of a server
    that sends it within the text. on, budget: as a request's `reasoning_effort` and `thinking_token_budget`.
    """

    model_config = ConfigDict(extra="forbid")

    style: Literal["think", "channel", "harmony", "brackets", "seed", "kimi", "cohere", "minimax"] | None = None
    on: bool | None = None
    budget: Annotated[int, Field(ge=0, le=32_768)] | None = None

    def applied(self, origin: Reasoning | None) -> Reasoning:
        """Return the origin's reasoning with these settings. Raises ValueError naming one that does not go with it."""
        if origin is None and self.style is None:
            raise ValueError("reasoning: style: say between which marks it reasons.")
        known = origin or Reasoning(on=True)
        if self.on is not None and self.on is not known.on and not known.switchable:
            raise ValueError("reasoning: on: nothing is known that turns its reasoning on or off.")
        if self.budget is not None and not known.bounded:
            raise ValueError("reasoning: budget: nothing is known that limits its reasoning.")
        return dataclasses.replace(
            known,
            styles=(STYLES[self.style],) if self.style else known.styles,
            on=known.on if self.on is None else self.on,
            budget=known.budget if self.budget is None else self.budget,
        )


class Tuned(BaseModel):
    """The settings that every model of one's own has.

    tasks: of those that the model it is made of can do; all of them when left out. prompts: the words that it was
    tuned on, by task, in place of the family's; the turn around them stays. {question}, {lang} and {label} or {labels}
    stand for what is asked; {{ and }} for braces. max_tokens: how long its replies may be, where the request names no
    length. weight: how much its replies count in merging; task_weights: by task, where it is another.
    check: ask it about drawn scenes before it counts as ready.
    reasoning: how it reasons before it answers.
    """

    model_config = ConfigDict(extra="forbid")

    name: Name
    tasks: Annotated[list[TaskName], Field(min_length=1)] | None = None
    prompts: dict[TaskName, Words] = {}
    max_tokens: Annotated[int, Field(ge=1, le=4096)] | None = None
    weight: Weight = 1.0
    task_weights: dict[TaskName, Weight] = {}
    check: bool = False
    reasoning: ReasoningSettings | None = None
    card: OwnCard = OwnCard()

    def verify(self, origin: Model) -> None:
        """Raise ValueError naming what does not go with the model that it is made of."""
        for task in self.tasks or ():
            if task not in origin.skills:
                able = ", ".join(name for name in TASKS if name in origin.skills)
                raise ValueError(f"tasks: {origin.name} cannot do {task}, only {able}.")
        for task, template in self.prompts.items():
            if task not in (self.tasks or origin.skills):
                raise ValueError(f"prompts: {self.name} does not do {task}.")
            _check_template(task, template, _placeholders(task, origin))
        check_task_weights(self.name, self.task_weights, self.tasks or list(origin.skills))
        self.reasoning_like(origin)

    def reasoning_like(self, origin: Model) -> Reasoning | None:
        """Return how it reasons, made of a model. Raises ValueError naming a setting that does not go with that."""
        return origin.reasoning if self.reasoning is None else self.reasoning.applied(origin.reasoning)


class Own(Tuned):
    """A fine-tune with weights of its own. like: the known model of its architecture and size."""

    like: Annotated[str, AfterValidator(_known)]
    checkpoint: Words
    revision: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> "Own":
        self.verify(MODELS[self.like])
        return self


class Lora(Tuned):
    """A LoRA in PEFT's format on a model that is served here too, whose engine it shares."""

    base: str
    adapter: Words
    revision: str | None = None


def own(spec: Own) -> Model:
    """Return the Model of a fine-tune. Its config.json must share architecture and image size with `like`."""
    origin = MODELS[spec.like]
    expected = origin.checkpoint.expect
    size = {field: expected[field] for field in ("vision_config.image_size",) if field in expected}
    checkpoint = Checkpoint(spec.checkpoint, spec.revision, expect={**kind(expected), **size})
    return _tuned(spec, origin, checkpoint, f"Fine-tune of {origin.name}", None)


def lora(spec: Lora, base: Model) -> Model:
    """Return the Model of an adapter. Raises ValueError naming what does not go with its base."""
    if base.engine != "vllm":
        raise ValueError(f"base: {base.name} takes no adapters.")
    spec.verify(base)
    checkpoint = Checkpoint(spec.adapter, spec.revision)
    adapted = _tuned(spec, base, checkpoint, f"LoRA adapter on {base.name}", spec.name)
    return dataclasses.replace(adapted, base=base.name)


def _tuned(spec: Tuned, origin: Model, checkpoint: Checkpoint, what: str, adapter: str | None) -> Model:
    tasks = [task for task in TASKS if task in (spec.tasks or origin.skills) and task in origin.skills]
    return dataclasses.replace(
        origin,
        name=spec.name,
        checkpoint=checkpoint,
        card=_card(spec.card, origin.card, tasks, what),
        skills={task: tuned_skill(task, spec, origin) for task in tasks},
        weight=spec.weight,
        task_weights=spec.task_weights,
        reasoning=spec.reasoning_like(origin),
        adapter=adapter,
    )


def _card(given: OwnCard, origin: Card, tasks: Sequence[str], what: str) -> Card:
    """Return the origin's card with the given fields, and without what is true of the origin's weights alone."""
    derived: dict[str, Any] = {
        "organization": "Whoever runs this server",
        "category": what,
        "released": "not published",
        "licence": f"that of its origin: {origin.licence}",
        "tasks": tuple(tasks),
        "features": (*origin.features, "fine-tuned by its user"),
        "about": f"{what}: a model of this server's own.",
        "overview": (),
        "checked": "Its architecture was, these weights were not: they are its user's own.",
    }
    return dataclasses.replace(origin, **{**derived, **given_fields(given)})


def given_fields(card: OwnCard) -> dict[str, Any]:
    """Return the fields that the operator gave for a card."""
    return {field: value for field, value in card.model_dump().items() if value is not None}


def tuned_model(spec: Tuned, origin: Model) -> Model:
    """Return a model that is made of nothing but its entry, with the tasks, words and card that the operator gave."""
    tasks = [task for task in TASKS if task in (spec.tasks or origin.skills)]
    return dataclasses.replace(
        origin,
        card=dataclasses.replace(origin.card, tasks=tuple(tasks), **given_fields(spec.card)),
        skills={task: tuned_skill(task, spec, origin) for task in tasks},
        weight=spec.weight,
        task_weights=spec.task_weights,
        reasoning=spec.reasoning_like(origin),
    )


def tuned_skill(task: str, spec: Tuned, origin: Model) -> Skill:
    """Return the origin's skill with the prompt and the length of reply that the operator gave."""
    return _tuned_skill(task, spec, origin, origin.skills[task])


def _tuned_skill(task: str, spec: Tuned, origin: Model, known: Skill) -> Skill:
    most = spec.max_tokens
    template = next((given for name, given in spec.prompts.items() if name == task), None)
    if template is None and most is None:
        return known

    def ask(request: Any) -> list[Prompt]:
        speaks_it = template is not None and "lang" in _fields(template)  # the family's own prompts may not
        prompts = known.ask(request.model_copy(update={"lang": "en"}) if speaks_it else request)
        if template is not None:
            single = len(prompts) > 1 or "label" in _fields(template)
            takes_phrases = TASKS[task].takes_phrases
            phrases = TASKS[task].texts(request) if takes_phrases else getattr(request, "labels", [])  # a count's thing
            phrases_by_prompt = phrases if single else [" ; ".join(phrases)]
            prompts = [
                dataclasses.replace(prompt, text=_turn(origin, prompt, _filled(template, request, text)))
                for prompt, text in zip(prompts, phrases_by_prompt, strict=True)
            ]
        if most is None or request.max_tokens:
            return prompts
        return [
            dataclasses.replace(prompt, sampling=dataclasses.replace(prompt.sampling, max_tokens=most))
            for prompt in prompts
        ]

    def of(form: Callable[[Any], Skill]) -> Callable[[Any], Skill]:
        return lambda contract: _tuned_skill(task, spec, origin, form(contract))

    by = None if known.by is None else of(known.by)
    return dataclasses.replace(known, ask=ask, forms=tuple(map(of, known.forms)), by=by)


def _filled(template: str, request: Any, labels: str) -> str:
    values = {field: getattr(request, field, "") for field in _fields(template)}
    return template.format(**values | {"label": labels, "labels": labels})


def _turn(origin: Model, prompt: Prompt, text: str) -> str:
    """Return the family's turn around this text, with the image or video where the family puts it."""
    film = prompt.video is not None
    return origin.converse([Turn("user", text, has_image=not film and prompt.image is not None, has_video=film)])


def _placeholders(task: str, origin: Model) -> Mapping[str, bool]:
    """Return the placeholders that a task's own prompt may have, and whether it must have each."""
    text_field = TASKS[task].text_field
    plain = {"lang": False} if "lang" in TASKS[task].request.model_fields else {}
    if text_field is None or text_field.kind == "json":
        return plain
    if issubclass(TASKS[task].request, CountRequest):
        return {**plain, "question": False, "label": True}
    return {_phrases(task, text_field.name, origin) if TASKS[task].takes_phrases else text_field.name: True, **plain}


def _phrases(task: str, name: str, origin: Model) -> str:
    """Return `label` for a task of one phrase and where a family is asked one at a time, `labels` for all at once."""
    if task not in origin.skills or TASKS[task].max_phrases == 1:
        return "labels" if task not in origin.skills else "label"
    image = Image(np.zeros((8, 8, 3), np.uint8))
    fields: dict[str, Any] = {"image": image, name: ["a", "b"]}
    request = TASKS[task].request.model_construct(**fields)
    return "label" if len(origin.skills[task].ask(request)) > 1 else "labels"


def _fields(template: str) -> set[str]:
    return {field for _, field, _, _ in string.Formatter().parse(template) if field is not None}


def _check_template(task: str, template: str, allowed: Mapping[str, bool]) -> None:
    """Raise ValueError naming a placeholder that means nothing in this task, or one that is missing."""
    can = f"it can hold {', '.join(f'{{{field}}}' for field in allowed)}" if allowed else "it can hold none"
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError:
        raise ValueError(f"prompts: {task}: a brace stands alone; a brace itself is written {{{{ or }}}}.") from None
    for _, field, spec, conversion in parts:
        if field is not None and (field not in allowed or spec or conversion):
            placeholder = field + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
            raise ValueError(f"prompts: {task}: {{{placeholder}}} is no placeholder; {can}.")
    for field, needed in allowed.items():
        if needed and field not in _fields(template):
            raise ValueError(f"prompts: {task}: {{{field}}} is missing, so it would not be asked; {can}.")
