"""Any checkpoint by its name: a repository of the hub, or a folder, of whatever architecture vLLM serves.

Its prompts are told to a chat model (`instructed`) and written with its own chat template; its card and its limits are
read from its own files. Which form its boxes have is declared (`boxes`), never guessed; without, it cannot detect.
"""

import contextlib
import dataclasses
import re
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, JsonValue, PrivateAttr, model_validator

from serve.engines import hub
from serve.engines.chat_settings import LONGEST, REFUSED, ChatSettings
from serve.engines.checkpoint_facts import CheckpointFacts, read_facts
from serve.engines.reasoning_switch import EFFORT, NONE, SWITCHES, ReasoningSwitch, reasoning_switch
from serve.errors import ModelError
from serve.models import MODELS
from serve.models.base import HUB_ID, Card, Checkpoint, Model, unchanged
from serve.models.contracts import Contract, Multiples
from serve.models.instructed import chat_messages, instructed_skills
from serve.models.own import Tuned, Words, tuned_model
from serve.models.reasoning import STYLES, Reasoning, ReasoningStyle
from serve.models.remote import PROBE, Boxes, box_contract
from serve.models.tool_calls import template_format

NO_FILES = CheckpointFacts()
NOT_STATED = "not stated"
CHECKED = (
    "Nothing of these weights. When it starts, its engine must read every tensor and answer about a picture. Whether "
    "it sees, `diptych check` says."
)
DRAWN = " Before that it is asked about drawn scenes: its report is in the catalogue, with the contract of its boxes."


UNCHECKED = {
    "allenai/Molmo2-": "its configuration and its processor are code in its repository alone",
    "allenai/MolmoPoint-": "it points by tokens and code of its own, which vLLM 0.32 does not have",
    "moondream/moondream3": "transformers has no code for it, and vLLM 0.32 none for its boxes and points",
    "deepseek-ai/DeepSeek-OCR-2": "vLLM 0.32 reads its maker's layout alone, and transformers 5.19 another one alone",
}
"""Checkpoints by the begin of their names: why nothing here could hold what vLLM does with them against a reference."""


def _hub_id(name: str) -> str:
    if HUB_ID.fullmatch(name) is None:
        raise ValueError(f"{name[:200]!r} is not the name of a repository, as Qwen/Qwen2-VL-7B-Instruct")
    for begin, why in UNCHECKED.items():
        if name.casefold().startswith(begin.casefold()):
            raise ValueError(
                f"{name} is not served by its name, as nothing could be checked here ({why}): to serve it unchecked, "
                "download it and give its `folder`."
            )
    known = [model.name for model in MODELS.values() if model.checkpoint.hub == name]
    if known:
        raise ValueError(f"{name} is the catalogue's {known[0]}: name that, which knows its own prompts.")
    return name


def _absolute(folder: str) -> str:
    """Return the folder's whole path: replicas run in other folders than the one where it was named."""
    return str(Path(folder).expanduser().absolute())


def _template(file: str) -> str:
    try:
        ChatSettings(file).read_template()
    except ModelError as error:
        if error.code == REFUSED:  # one that is missing may be on the engine's machine
            raise ValueError(error.message) from None
    return file


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"{text!r} is no regular expression: {error}") from None
    return text


class NamedCheckpoint(Tuned):
    """A checkpoint of any architecture.

    hub: a repository, with `revision`; or folder: one of this machine. name: by default the last part of either. boxes:
    the coordinate contract that it writes boxes by, or probe. chat_template: a file, in place of the
    checkpoint's. template_args: values of the template's variables, as {enable_thinking: true}. unused: regular
    expressions for tensors that are known to be unused.
    """

    hub: Annotated[str, AfterValidator(_hub_id)] | None = None
    folder: Annotated[str, Field(min_length=1, max_length=4000), AfterValidator(_absolute)] | None = None
    revision: str | None = None
    boxes: Boxes | None = None
    chat_template: Annotated[Words, AfterValidator(_template)] | None = None
    template_args: dict[str, JsonValue] = {}
    unused: list[Annotated[str, AfterValidator(_pattern)]] = []
    _facts: CheckpointFacts | None = PrivateAttr(None)

    @model_validator(mode="before")
    @classmethod
    def _name_by_checkpoint(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and "name" not in given:
            source = given.get("hub") or given.get("folder")
            if isinstance(source, str) and source.strip("/"):
                return {**given, "name": Path(source.rstrip("/")).expanduser().absolute().name}
        return given

    @model_validator(mode="after")
    def _fits(self) -> "NamedCheckpoint":
        if (self.hub is None) == (self.folder is None):
            raise ValueError("one of hub and folder must be there, and not both.")
        if self.boxes is None and "detect" in (self.tasks or ()):
            raise ValueError(
                "tasks: detect needs `boxes`, the coordinate contract by which the model writes a box; `boxes: probe` "
                "finds it when the server starts."
            )
        self.verify(_origin(self))
        self.check = self.check or self.boxes == PROBE
        return self

    def __getstate__(self) -> dict[Any, Any]:
        """Leave the facts out of a pickle: another process may have newer files."""
        return {**super().__getstate__(), "__pydantic_private__": {"_facts": None}}

    @property
    def facts(self) -> CheckpointFacts:
        """Return what the checkpoint's files on this machine say, read once; nothing where it has none yet."""
        folder = hub.config_folder(self.checkpoint, self.revision)
        if folder is None:
            return NO_FILES
        if self._facts is None:
            self._facts = read_facts(folder)
        return self._facts

    @property
    def checkpoint(self) -> str:
        """Return the repository or the folder."""
        return str(self.hub or self.folder)


def generic_model(spec: NamedCheckpoint) -> Model:
    """Return the Model of a checkpoint. Its card is read from the files that are on this machine; asks no network."""
    return tuned_model(spec, _origin(spec))


def _origin(spec: NamedCheckpoint) -> Model:
    facts, boxes = spec.facts, box_contract(spec.boxes)
    if isinstance(boxes, Contract):
        boxes = _resizing(boxes, facts)
    skills = instructed_skills(chat_messages, boxes=boxes)
    chat = ChatSettings(spec.chat_template, spec.template_args, tuple(spec.unused))
    limits = {} if facts.context is None else {"max_model_len": min(facts.context, LONGEST)}
    checkpoint = Checkpoint(spec.checkpoint, spec.revision)
    reasoning = _reasoning(spec, facts, chat)
    return Model(
        name=spec.name,
        checkpoint=checkpoint,
        card=_card(spec, facts, reasoning),
        skills=skills,
        converse=chat_messages,
        prepare=unchanged,
        family_args=limits,
        reasoning=reasoning,
        chat=chat,
        tools=_tools(facts, chat),
    )


def _tools(facts: CheckpointFacts, chat: ChatSettings) -> str | None:
    """Return the format of its calls of functions, as its template shows it."""
    with contextlib.suppress(ModelError):  # the file may be on the engine's machine alone
        return template_format(chat.read_template() or facts.chat_template)
    return None


def _reasoning(spec: NamedCheckpoint, facts: CheckpointFacts, chat: ChatSettings) -> Reasoning | None:
    """Return how a checkpoint reasons, by its template and its tokens; None where they show nothing of it."""
    template = facts.chat_template
    with contextlib.suppress(ModelError):  # the file may be on the engine's machine alone
        template = chat.read_template() or template
    switch, given = reasoning_switch(template), spec.reasoning
    in_template = _styles(template or "")
    styles = in_template or _styles(facts.added_tokens)
    if given is not None and given.style is not None:
        styles = (STYLES[given.style],)
    if switch.name is not None or (template is None and facts == NO_FILES):
        # of files that are not here yet the engine will find the switch
        any_style = tuple(STYLES.values())
        return Reasoning(styles or any_style, switchable=True, on=_is_on(switch, spec), bounded=bool(styles))
    if not styles:
        return None
    # nothing follows from tokens alone: models that never reason have those of their family
    on = bool(in_template) or (given is not None and given.style is not None)
    if given is not None and given.on is not None:
        on = given.on
    return Reasoning(styles, on=on, bounded=on)


def _styles(text: Container[str]) -> tuple[ReasoningStyle, ...]:
    """Return the styles of which a template, or a set of tokens, holds a mark."""
    return tuple(style for style in STYLES.values() if any(mark in text for mark in style.begins + style.ends))


def _is_on(switch: ReasoningSwitch, spec: NamedCheckpoint) -> bool:
    """Return whether reasoning is on where a request does not say: by the template's values, else off."""
    names = (*SWITCHES, EFFORT) if switch.name is None else (switch.name,)
    return any(spec.template_args.get(name, False) not in (False, None, NONE) for name in names)


def _resizing(contract: Contract, facts: CheckpointFacts) -> Contract:
    """Return a contract whose pixels are those of the resized picture, with the limits of its files."""
    if contract.resized is None or facts.picture_pixels is None or facts.picture_unit is None:
        return contract
    return dataclasses.replace(contract, resized=Multiples(facts.picture_unit, *facts.picture_pixels))


def _card(spec: NamedCheckpoint, facts: CheckpointFacts, reasoning: Reasoning | None) -> Card:
    name = spec.hub or Path(str(spec.folder)).name
    return Card(
        organization=spec.hub.partition("/")[0] if spec.hub else "Whoever runs this server",
        category="Vision-language model, served by its name",
        modality="image and text in, text out",
        released=NOT_STATED,
        context_window=facts.context,
        parameters=facts.parameters,
        licence=facts.licence or NOT_STATED,
        tasks=(),
        features=tuple(_features(facts, reasoning)),
        links=(f"{hub.hub_url()}/{spec.hub}",) if spec.hub else (),
        about=f"{name}: it does its tasks because it is told to in plain words. This card was read from its files.",
        hardware=_hardware(facts),
        checked=CHECKED + (DRAWN if spec.check or spec.boxes == PROBE else ""),
    )


def _features(facts: CheckpointFacts, reasoning: Reasoning | None) -> list[str]:
    languages = ", ".join(facts.languages[:12]) + (" ..." if len(facts.languages) > 12 else "")
    pixels = facts.picture_pixels
    stated = {
        "architecture {}": facts.architecture,
        "stored as {}": facts.dtype,
        "quantised: {}": facts.quantization,
        "fine-tuned from {}": facts.base_model,
        "languages {}": languages or None,
        "pictures of {} pixels": f"{pixels[0]:,} to {pixels[1]:,}" if pixels else None,
        "pictures of {0} x {0} pixels, or tiles of it": None if pixels else facts.picture_size,
        "reasoning{}": _reasoning_words(facts, reasoning),
    }
    return [text.format(value) for text, value in stated.items() if value is not None] or ["told in plain words"]


def _reasoning_words(facts: CheckpointFacts, reasoning: Reasoning | None) -> str | None:
    """Return how it reasons, for a card; None where its files, or their absence, do not say that it does."""
    if reasoning is None or facts == NO_FILES or not (reasoning.switchable or reasoning.on):
        return None
    if not reasoning.switchable:
        return " before each answer"
    return f", {'on' if reasoning.on else 'off'} unless a request says otherwise"


def _hardware(facts: CheckpointFacts) -> str:
    if facts.parameters is None:
        return "Not known before it is downloaded: `diptych plan` reads the headers of its weights."
    size = facts.parameters / 1e9
    return (
        f"{2 * size:.1f} GB of weights in bfloat16 on a GPU, {4 * size:.1f} GB in float32 on a processor (computed); "
        "`diptych plan` adds its cache."
    )
