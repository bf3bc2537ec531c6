"""A model: its card, its checkpoint, and the tasks that it can do."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from serve.engines.base import Generation, PictureLimits, Prompt, Sampling
from serve.engines.chat_settings import ChatSettings
from serve.media.image import Image
from serve.models.contracts import Contract, Multiples
from serve.models.reasoning import Reasoning
from serve.tasks.reply import Result

HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
"""The form of a repository's name on the hub."""
CHECKED = (
    "Its architecture, by tiny random checkpoints in the published layout: on CPU, float32, against transformers "
    "(serve/engines/README.md). The published weights were never run by this project."
)


Basis = Literal["native", "prompted", "derived"]
"""How a model does a task: it was trained to; it is told to, in words; or its results of another task are used."""


@dataclass(frozen=True)
class Skill:
    """A model's prompts and parser for one task.

    ask: a task's request -> its prompts; a family that takes one phrase per prompt gives several, whose generations
    are one reply. Raises BadRequest for a request that the family was not trained for. parse: one generation per
    prompt, in order -> the task's result. Raises ParseError for text that is no result.
    """

    ask: Callable[[Any], list[Prompt]]
    parse: Callable[[Sequence[Generation], Any], Result]
    slow: bool = False
    """Run `ask` and `parse` in a thread: they would block the event loop for more than a moment."""
    prompts: Callable[[Any], int] = lambda request: 1
    """The number of prompts that `ask` makes for a request, without making them."""
    suits: Callable[[Any], bool] = lambda request: True
    """Whether the model is asked a request that names no models; False where it does that part of a task badly."""
    contract: Contract | None = None
    """How the family writes the coordinates that `parse` reads, where that is declared."""
    forms: tuple[Callable[[Contract | None], "Skill"], ...] = ()
    """Ways to ask, where the contract is not known: a check finds it and which way is answered. None: not known yet."""
    spots: bool = False
    """Of reading: whether it can also say where each line of the text stands."""
    basis: Basis = "native"
    by: Callable[[Contract], "Skill"] | None = None
    """The same skill by another contract, where its contract follows from the engine's files (`with_limits`)."""


@dataclass(frozen=True)
class Turn:
    """A message of a conversation. role: system, user or assistant; tool, for a model that calls functions. has_image,
    has_video: whether the request's image or video belongs to this message; never both. calls: an assistant's calls of
    functions, as OpenAI's JSON. call: the id of the call whose result this is. function: its name, where it is known.
    """

    role: str
    text: str
    has_image: bool = False
    has_video: bool = False
    calls: str = ""
    call: str = ""
    function: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """A model's weights. hub: a repository id on the Hugging Face hub, or a local folder. revision: a commit of it.

    expect: values that its config.json must have, by dotted field (`text_config.vocab_size`); loading fails otherwise.
    """

    hub: str
    revision: str | None = None
    gated: bool = False
    expect: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Price:
    """The price of a million tokens: of a prompt (input), and of a reply (output)."""

    input: float
    output: float
    currency: str = "USD"


@dataclass(frozen=True)
class Card:
    """A model's row in the comparison table, for people to read."""

    organization: str
    category: str
    modality: str
    released: str
    context_window: int | None
    parameters: int | None
    """None: not known."""
    licence: str
    tasks: tuple[str, ...]
    """Tasks that it was trained for, in its card's words; `Model.skills` is what it can do here."""
    features: tuple[str, ...]
    links: tuple[str, ...] = ()
    about: str = ""
    overview: tuple[str, ...] = ()
    """Two paragraphs: what it is made of and trained for; what it is good and bad at, and what came after it."""
    toy: bool = False
    hardware: str = ""
    """The hardware that it needs, as a sentence, and whether a laptop's CPU is enough."""
    checked: str = ""
    """How this project has tested it, and what is untested."""
    remote: bool = False
    """Whether it runs on another server, to which images and questions are sent."""
    price: Price | None = None


@dataclass(frozen=True)
class Model:
    """A model that can be served.

    family_args: keyword arguments for the vLLM engine that the architecture needs (never number or place of replicas).
    converse: the turns of a conversation -> the exact prompt text. Raises BadRequest for what the family was not
    trained for. prepare: image -> the image for the checkpoint's processor (LLaVA-1.5: padded to a square).
    """

    name: str
    checkpoint: Checkpoint
    card: Card
    skills: Mapping[str, Skill]
    converse: Callable[[Sequence[Turn]], str]
    prepare: Callable[[Image], Image]
    family_args: Mapping[str, Any] = field(default_factory=dict)
    engine: Literal["vllm", "ocr"] = "vllm"
    prefix_lm: bool = False
    """Image and prompt attend to each other fully; the reply is causal (arXiv 2407.07726)."""
    images: bool = True
    videos: bool = False
    """Whether it takes images, videos, or either."""
    frames: int = 32
    """The most frames that are sampled from a video, evenly spaced: as in its training, and as its context holds."""
    weight: float = 1.0
    """The weight of its replies in merging, unless the request gives one."""
    task_weights: Mapping[str, float] = field(default_factory=dict)
    """The same by task, where it is another."""
    ends: tuple[str, ...] = ()
    """Texts that end its replies, besides the checkpoint's end token."""
    reasoning: Reasoning | None = None
    """How it reasons before it answers; None for a model that does not."""
    chat: ChatSettings | None = None
    """For a checkpoint that was named: `converse` writes messages as JSON, and its engine their prompt."""
    tools: str | None = None
    """The name of vLLM's parser for its calls of functions; None for a model that calls none."""
    adapter: str | None = None
    """The name of its LoRA adapter in the engine of its base model; None for a model with its own checkpoint."""
    base: str | None = None
    """The name of that base model."""

    def weight_in(self, task: str) -> float:
        """Return the weight of its replies to a task in merging."""
        return self.task_weights.get(task, self.weight)


def with_limits(model: Model, limits: PictureLimits | None) -> Model:
    """Return the model with contracts that count the pixels of a picture as its engine resizes it."""
    if limits is None:
        return model
    by_engine = {
        task: replace(skill.by(replace(skill.contract, resized=Multiples(*limits))), basis=skill.basis)
        for task, skill in model.skills.items()
        if skill.by is not None and skill.contract is not None and skill.contract.resized is not None
    }
    return replace(model, skills={**model.skills, **by_engine})


def unchanged(image: Image) -> Image:
    """Return the image itself: `prepare` of a family whose processor does everything."""
    return image


def task_sampling(request: Any, max_tokens: int, ends: Sequence[str] = ()) -> Sampling:
    """Return a task request's sampling. max_tokens: used where the request gives none. ends: the family's `ends`."""
    return Sampling(
        max_tokens=request.max_tokens or max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        seed=request.seed,
        stop=stops(request, ends),
        ignore_eos=request.ignore_eos,
    )


def stops(request: Any, ends: Sequence[str]) -> tuple[str, ...]:
    """Return the texts that end a reply: the request's `stop` (a string, a list or None), then the family's `ends`.

    With `ignore_eos` the family's are left out, as the checkpoint's end token is.
    """
    given = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    return given if request.ignore_eos else (*given, *ends)
