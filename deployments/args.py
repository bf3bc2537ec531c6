"""What a Serve config says of this application: which models, how many, where. What a model is stands in `serve`."""

import dataclasses
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from deployments.autoscaling import Scaling
from serve.engines.config_check import kind
from serve.fetch.policy import Policy
from serve.models import MODELS
from serve.models.base import Checkpoint, Model
from serve.models.own import Lora, Own, lora, own
from serve.wire.guard import Access, Way
from serve.wire.keys import Keys, parsed
from serve.wire.limits import MAX_BODY, Limits
from serve.wire.sites import is_loopback

log = logging.getLogger(__name__)

KEYS = "DIPTYCH_API_KEYS"
"""name:sha256:HEX entries with commas between, in the gateway's environment; besides those of keys_file."""


class Placement(BaseModel):
    """How many copies of a deployment, and what each takes."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    replicas: int = Field(default=1, ge=1)
    autoscaling: Scaling | None = Field(default=None, description="In place of `replicas`: as many as are needed.")
    drain_s: float = Field(default=8, ge=0, description="What it has left to finish, once it is told to stop.")
    num_cpus: float = Field(default=1, ge=0)
    num_gpus: float = Field(default=0, ge=0)
    resources: dict[str, float] = {}
    surge: bool | None = Field(
        default=None,
        description="When it changes: start the new copy before the old one ends, which takes room for both. "
        "Left out: where it takes no GPU.",
    )
    max_ongoing_requests: int = Field(
        default=1000, ge=1, description="Prompts of one gateway in one replica, running and queued; beyond: refused."
    )

    @property
    def sleeps(self) -> bool:
        """Whether its last copy ends where nobody asks."""
        return self.autoscaling is not None and self.autoscaling.min_replicas == 0

    @property
    def surges(self) -> bool:
        """Whether a changed copy is started before the old one ends."""
        return self.num_gpus == 0 if self.surge is None else self.surge

    @property
    def max_replicas(self) -> int:
        """The number of copies at its highest."""
        return self.replicas if self.autoscaling is None else self.autoscaling.max_replicas


class ModelPlacement(Placement):
    """A model with an engine of its own.

    engine: vLLM arguments of this place, which win over the family's. keeps_pictures: of several replicas, the same one
    gets all questions about a picture, as long as it is not crowded. simulate: FakeEngine's arguments; the model then
    speaks without weights, for rehearsing a cluster. engine_metrics: vLLM's own, exported by Ray as ray_vllm_*.
    """

    engine: dict[str, Any] = {}
    keeps_pictures: bool = True
    simulate: dict[str, Any] | None = None
    engine_metrics: bool = False


class ModelArgs(ModelPlacement):
    """A known model. Name alone is enough. checkpoint: a folder or hub id instead of the card's own."""

    name: str
    checkpoint: str | None = None
    revision: str | None = None
    weight: float | None = Field(default=None, ge=0, le=1000, description="How much its replies count in merging.")

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in MODELS:
            raise ValueError(
                f"There is no model {name!r}. Known: {', '.join(MODELS)}. A model of your own says what it is `like`, "
                "or is a LoRA `adapter` on a `base`."
            )
        return name

    def model(self) -> Model:
        """The catalogue's, with this place's weight and checkpoint."""
        known = MODELS[self.name]
        weight = known.weight if self.weight is None else self.weight
        if self.checkpoint is None:
            made = dataclasses.replace(known.checkpoint, revision=self.revision or known.checkpoint.revision)
        else:
            made = Checkpoint(self.checkpoint, self.revision, expect=kind(known.checkpoint.expect))
        return dataclasses.replace(known, weight=weight, checkpoint=made)


class OwnArgs(Own, ModelPlacement):
    """A fine-tune with weights of its own (serve/models/own.py)."""

    def model(self) -> Model:
        return own(self)


class LoraArgs(Lora):
    """A LoRA adapter. It is placed where its base is."""


SORTS = ("known", "own", "adapter")


def _sort_of(value: Any) -> str:
    """Which of the three an entry is, by the field that only it has."""
    given = value if isinstance(value, Mapping) else vars(value) if isinstance(value, BaseModel) else {}
    return "adapter" if {"base", "adapter"} & given.keys() else "own" if "like" in given else "known"


Entry = Annotated[
    Annotated[ModelArgs, Tag("known")] | Annotated[OwnArgs, Tag("own")] | Annotated[LoraArgs, Tag("adapter")],
    Discriminator(_sort_of),
]


class Listen(BaseModel):
    """A port that gateways open by themselves."""

    model_config = ConfigDict(extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(ge=1, le=65535)


class GatewayArgs(Placement):
    """The front: no torch, no engine, little memory. How it is kept from strangers: README.md, "Security"."""

    num_cpus: float = Field(default=0.5, ge=0)
    images: Policy = Field(default=Policy(), description="Which pictures it fetches by their URLs.")
    listen: Listen | None = Field(default=None, description="A port past Serve's own ingress, whose proxy costs time.")
    memory_mb: int | None = Field(
        default=None,
        ge=128,
        description="What its requests may hold together: bodies, files, pixels. Left out: 60 % of its container's "
        "memory, or an eighth of the machine's.",
    )
    max_body_mb: int = Field(default=MAX_BODY // 2**20, ge=1, description="The largest request that is read.")
    body_timeout_s: float = Field(default=Limits.body_s, gt=0, description="In which a request's body must arrive.")
    head_timeout_s: float = Field(default=Limits.head_s, gt=0, description="The same for its headers, with `listen`.")
    leave_s: float = Field(
        default=0,
        ge=0,
        description="How long one that is stopped tells /health so, and answers all the same, before it takes nothing "
        "new: in which balancers before it turn to others. A new one counts as started so long after it answers.",
    )
    write_timeout_s: float = Field(
        default=Limits.write_s, gt=0, description="In which a client takes what is written for it, with `listen`."
    )
    keys_file: Path | None = Field(
        default=None,
        description="A file of the gateway's machine, name:sha256:HEX a line; read again when it changes. "
        "Emptied: nobody is let in.",
    )
    access_log: bool = Field(
        default=False,
        description="A line for each request in DIPTYCH_LOG: route, status, time, key; never its content.",
    )
    metrics: Literal["key", "open", "closed"] = Field(default="key", description="Who may read /metrics.")
    ready: Way = Field(default="key", description="Who may read /ready.")
    page: Way = Field(default="key", description="Who may load the page; what it asks needs a key all the same.")
    requests_per_minute: int | None = Field(default=None, ge=1, description="Of each key, in each gateway.")
    requests_at_once: int | None = Field(default=None, ge=1, description="Of each key, in each gateway.")
    hosts: list[str] = Field(
        default=[],
        description="Names by which it may be asked: vision.example.com, *.example.com. On loopback without keys it "
        "answers to this machine's own and to these; elsewhere to any, unless some are named.",
    )
    salt_caches: bool = Field(
        default=False,
        description="Engines keep what they hold of one key's pictures and prompts apart from other keys', so that "
        "nobody can time what others have asked. Costs what sharing saves.",
    )
    cors: list[str] = Field(default=[], description="Origins whose pages may call: https://app.example.com, or *.")

    def asks_for_keys(self) -> bool:
        """Whether keys are configured here, or in this process's environment."""
        return self.keys_file is not None or KEYS in os.environ

    def limits(self) -> Limits:
        """What the edge holds requests to."""
        return Limits(
            body=self.max_body_mb * 2**20,
            body_s=self.body_timeout_s,
            head_s=self.head_timeout_s,
            write_s=self.write_timeout_s,
        )

    def access(self) -> Access:
        """Who may come in, with the keys read now. Raises ValueError or OSError where keys are wanted but not there."""
        keys = None
        if self.asks_for_keys():
            entries = parsed(os.environ.get(KEYS, ""))
            if self.keys_file is not None:
                entries += parsed(self.keys_file.read_text(encoding="utf-8"))
            keys = Keys(entries, may_be_none=self.keys_file is not None)
            if not entries:
                log.warning("There is no key in %s: nobody is let in, and only /health answers.", self.keys_file)
        elif self.requests_per_minute or self.requests_at_once or self.salt_caches:
            raise ValueError(
                f"requests_per_minute, requests_at_once and salt_caches are each key's: set keys_file or {KEYS}."
            )
        return Access(
            keys=keys,
            metrics=self.metrics,
            ready=self.ready,
            page=self.page,
            per_minute=self.requests_per_minute,
            at_once=self.requests_at_once,
            hosts=self._hosts(),
            salted=self.salt_caches,
        )

    def warning(self) -> str | None:
        """What its operator should hear at the start: that whoever reaches it may use it."""
        if self.listen is None or self.asks_for_keys() or is_loopback(self.listen.host):
            return None
        return (
            f"WARNING: nobody is asked for a key, and {self.listen.host} is open to other machines: whoever reaches "
            f"port {self.listen.port} may use the models. Make a key for each user (`diptych key NAME`) or "
            "listen on 127.0.0.1."
        )

    def _hosts(self) -> frozenset[str] | None:
        """The names it answers to beside this machine's own; None where any will do."""
        local = self.listen is not None and is_loopback(self.listen.host) and not self.asks_for_keys()
        return frozenset(self.hosts) if self.hosts or local else None


class Args(BaseModel):
    """The application's `args` in a Serve config."""

    model_config = ConfigDict(extra="forbid")

    models: list[Entry] = Field(min_length=1)
    gateway: GatewayArgs = GatewayArgs()

    @model_validator(mode="before")
    @classmethod
    def _names_alone(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and isinstance(value.get("models"), list):
            models = [{"name": model} if isinstance(model, str) else model for model in value["models"]]
            return {**value, "models": models}
        return value

    @model_validator(mode="after")
    def _each_once(self) -> "Args":
        names = [model.name for model in self.models]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"Named twice: {', '.join(sorted(twice))}.")
        order = list(MODELS)
        self.models.sort(key=lambda entry: order.index(entry.name) if entry.name in MODELS else len(order))
        self.built()
        return self

    def engines(self) -> dict[str, "ModelArgs | OwnArgs"]:
        """The models with an engine of their own, by name."""
        return {entry.name: entry for entry in self.models if not isinstance(entry, LoraArgs)}

    def simulated_gpus(self) -> float | None:
        """GPUs that nothing real asks for: where all engines are simulated, so are their GPUs. None: real ones."""
        engines = list(self.engines().values())
        if any(one.simulate is None for one in engines):
            return None
        return sum(one.num_gpus * one.max_replicas for one in engines)

    def adapters(self, base: str) -> list[LoraArgs]:
        """The LoRA adapters that share this base's engine."""
        return [entry for entry in self.models if isinstance(entry, LoraArgs) and entry.base == base]

    def built(self) -> dict[str, Model]:
        """Every model, in the order of everything that is returned: the catalogue's, then one's own as written.

        Raises ValueError naming an adapter that does not go with its base.
        """
        bases = {name: entry.model() for name, entry in self.engines().items()}
        found = {}
        for entry in self.models:
            if not isinstance(entry, LoraArgs):
                found[entry.name] = bases[entry.name]
            elif entry.base in bases:
                try:
                    found[entry.name] = lora(entry, bases[entry.base])
                except ValueError as error:
                    raise ValueError(f"{entry.name}: {error}") from None
            else:
                raise ValueError(
                    f"{entry.name}: base: {entry.base!r} is not served here with an engine of its own. "
                    f"Served: {', '.join(bases) or 'none'}."
                )
        return found
