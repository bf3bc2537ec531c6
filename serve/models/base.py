"""What a model is: its card, how it is loaded, and what it can do."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from serve.engines.base import Prompt, Sampling, Spoken
from serve.media.image import Image
from serve.tasks.base import Result

TOY_NOTE = (
    "A toy, trained on drawn shapes: it knows shapes, colours, counts, places and a few short words, nothing else. "
    "For real pictures serve the published models: diptych serve --models llava-1.5-7b,paligemma-3b-mix-448"
)

TOY_HARDWARE = "A laptop's CPU will do: it was trained on one core of one."
TOY_CHECKED = "The checkpoint itself: on CPU, against transformers and on fresh scenes (serve/toy/README.md)."
CHECKED = (
    "Its architecture, by tiny random checkpoints in the published layout: on CPU, float32, against transformers "
    "(serve/engines/README.md). The published weights were never run by this project."
)


@dataclass(frozen=True)
class Skill:
    """How one model does one task. `ask` may give several prompts (one phrase each): together they are one reply."""

    ask: Callable[[Any], list[Prompt]]
    parse: Callable[[Sequence[Spoken], Any], Result]
    slow: bool = False
    """Whether asking or parsing takes more than a moment, so that it must not hold up the others' words."""
    prompts: Callable[[Any], int] = lambda request: 1
    """How many prompts `ask` gives for a request, told without making them."""


@dataclass(frozen=True)
class Turn:
    """One message of a conversation. Roles: system, user, assistant. `pictured`: the image stands in this turn,
    `filmed`: the video does; never both."""

    role: str
    text: str
    pictured: bool = False
    filmed: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """Where the weights are. `hub` is a repository id or a local folder; `revision` pins it.

    expect: what its config.json must say, by dotted field (`text_config.vocab_size`): another value is another model.
    """

    hub: str
    revision: str | None = None
    gated: bool = False
    expect: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Card:
    """A row of the comparison table; every field is a person's reading matter."""

    organization: str
    category: str
    modality: str
    released: str
    context_window: int
    parameters: int
    licence: str
    tasks: tuple[str, ...]
    features: tuple[str, ...]
    links: tuple[str, ...] = ()
    about: str = ""
    toy: bool = False
    hardware: str = ""
    """What it wants to run on, in words, and whether a laptop's CPU will do."""
    checked: str = ""
    """What this project has checked it on, and what not."""


@dataclass(frozen=True)
class Model:
    """A column of the table.

    family_args: keyword arguments for the vLLM engine that the model itself dictates (never how many or where).
    converse: turns of a plain conversation -> the exact prompt text; raises BadRequest for what the family was
    not trained for. prepare: what the picture needs before the processor sees it (LLaVA-1.5: padding to a square).
    """

    name: str
    checkpoint: Checkpoint
    card: Card
    skills: Mapping[str, Skill]
    converse: Callable[[Sequence[Turn]], str]
    prepare: Callable[[Image], Image]
    family_args: Mapping[str, Any] = field(default_factory=dict)
    prefix_lm: bool = False
    """Image and prompt attend to each other fully; the reply is causal (arXiv 2407.07726)."""
    images: bool = True
    videos: bool = False
    """What it takes: a picture, a film, or either."""
    frames: int = 32
    """Of a film at most so many frames, evenly spaced: what its training saw and its context holds."""
    weight: float = 1.0
    """How much its replies count in merging, where the request does not say."""
    ends: tuple[str, ...] = ()
    """Texts at which its replies end, beside the checkpoint's end token."""
    adapter: str | None = None
    """The name of the LoRA adapter that makes it out of its base's engine; None is a checkpoint of its own."""


def sampling(request: Any, max_tokens: int, ends: Sequence[str] = ()) -> Sampling:
    """The request's sampling, with the task's own length where the request names none. ends: the family's own."""
    return Sampling(
        max_tokens=request.max_tokens or max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        seed=request.seed,
        stop=stops(request, ends),
        ignore_eos=request.ignore_eos,
    )


def stops(request: Any, ends: Sequence[str]) -> tuple[str, ...]:
    """Return the texts at which a reply ends: the request's `stop` (one, several or none), then the family's ends.

    `ignore_eos` speaks on past the latter, as past the checkpoint's end token.
    """
    given = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    return given if request.ignore_eos else (*given, *ends)
