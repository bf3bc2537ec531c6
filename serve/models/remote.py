"""A model on another server that speaks OpenAI's API: a vLLM that is running already, or a commercial API."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from serve.engines.remote.chat_request import DEFAULT_FIELDS, ChatField
from serve.engines.remote.engine import SILENCE_S
from serve.engines.remote.image_files import DEFAULT_IMAGE_TYPES, ImageType
from serve.media.fetch.address import ParsedUrl, parse
from serve.models.base import Card, Checkpoint, Model, Price, unchanged
from serve.models.contracts import CONTRACTS, Contract
from serve.models.instructed import INSTRUCTED, chat_messages, instructed_skills
from serve.models.own import Tuned, tuned_model
from serve.models.reasoning import Reasoning

LENGTHS = ("max_tokens", "max_completion_tokens")
PROBE = "probe"
BOX_CONTRACTS = tuple(name for name, known in CONTRACTS.items() if known.shape == "box" and known.style in INSTRUCTED)
"""The coordinate contracts that a model can be told to follow."""
BOXES = (
    "needs `boxes`, its coordinate contract: the form and scale in which the model writes a box. `boxes: probe` finds "
    "it when the server starts"
)
_NOT_STATED = "not stated"


def _base(url: str) -> str:
    parsed = parse(url)
    if parsed is None or {"?", "%"} & set(parsed.target):
        raise ValueError("it must be the base URL of an API, as https://host/v1, without user, query or escapes")
    return url


def _contract(name: str) -> str:
    if name not in (*BOX_CONTRACTS, PROBE):
        raise ValueError(f"it must be a coordinate contract, {', '.join(BOX_CONTRACTS)}, or {PROBE}")
    return name


Boxes = Annotated[str, AfterValidator(_contract)]
"""A coordinate contract's name, or PROBE."""


class RemotePrice(BaseModel):
    """A price of a million tokens. Reports multiply it by a reply's `usage`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: float = Field(ge=0, description="Price of a million tokens of prompts, images included.")
    output: float = Field(ge=0, description="Price of a million tokens of replies.")
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")] = "USD"


class RemoteModel(Tuned):
    """A model on another server. It needs no process of ours: the gateway asks the server.

    remote: the base URL of its API. model: its name there. name: its name here, by default the last part of `model`.
    boxes: its coordinate contract, a name of BOX_CONTRACTS, or probe; without it does not detect.
    """

    remote: Annotated[str, AfterValidator(_base)] = Field(description="The base URL of its API, as https://host/v1.")
    model: Annotated[str, Field(min_length=1, max_length=200)]
    key_env: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]{0,127}$")] | None = None
    fields: Annotated[list[ChatField], Field(min_length=1)] = list(DEFAULT_FIELDS)
    image_types: Annotated[list[ImageType], Field(min_length=1)] = list(DEFAULT_IMAGE_TYPES)
    price: RemotePrice | None = None
    boxes: Boxes | None = None
    max_ongoing_requests: Annotated[int, Field(ge=1)] = 32
    silence_s: Annotated[float, Field(gt=0, le=600)] = SILENCE_S

    @model_validator(mode="before")
    @classmethod
    def _name_by_model(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and "name" not in given and isinstance(given.get("model"), str):
            return {**given, "name": given["model"].rpartition("/")[2]}
        return given

    @model_validator(mode="after")
    def _fits(self) -> "RemoteModel":
        if len([field for field in LENGTHS if field in self.fields]) != 1:
            raise ValueError(f"fields: one of {' and '.join(LENGTHS)} must be there, to limit the length of a reply.")
        if not {"png", "jpeg"} & set(self.image_types):
            raise ValueError("image_types: png or jpeg must be there, to send what the client's file does not suit.")
        if "detect" in (self.tasks or ()) and self.boxes is None:
            raise ValueError(f"tasks: detect {BOXES}.")
        self.verify(_origin(self))
        self.check = self.check or self.boxes == PROBE
        return self

    def url(self) -> ParsedUrl:
        """Return the parsed base URL."""
        parsed = parse(self.remote)
        assert parsed is not None
        return parsed


def remote_model(spec: RemoteModel) -> Model:
    """Return the Model of a server's model, with the tasks, prompts and lengths that the operator gave."""
    return tuned_model(spec, _origin(spec))


def box_contract(name: str | None) -> Contract | Literal["probe"] | None:
    """Return what an entry's `boxes` names, as `instructed_skills` takes it."""
    return "probe" if name == PROBE else None if name is None else CONTRACTS[name]


def _origin(spec: RemoteModel) -> Model:
    """Return the model with every task that a chat model can be told to do."""
    price = None if spec.price is None else Price(spec.price.input, spec.price.output, spec.price.currency)
    return Model(
        name=spec.name,
        checkpoint=Checkpoint(spec.model),
        card=Card(
            organization=_NOT_STATED,
            category="Model on another server",
            modality="image and text in, text out",
            released=_NOT_STATED,
            context_window=None,
            parameters=None,
            licence=_NOT_STATED,
            tasks=(),
            features=("asked through OpenAI's API",),
            about="It runs on another server: images and questions for it leave this one.",
            hardware="None here: it runs on another server.",
            checked="Nothing: what answers at its server was not tested by this project.",
            remote=True,
            price=price,
        ),
        skills=instructed_skills(
            chat_messages,
            logprobs="logprobs" in spec.fields,
            schemas="response_format" in spec.fields,
            boxes=box_contract(spec.boxes),
        ),
        converse=chat_messages,
        prepare=unchanged,
        reasoning=Reasoning(
            switchable=bool({"reasoning_effort", "chat_template_kwargs"} & set(spec.fields)),
            bounded="thinking_token_budget" in spec.fields,
            opened=False,
            schemas=True,
        ),
    )
