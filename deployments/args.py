"""What a Serve config says of this application: which models, how many, where. What a model is stands in `serve`."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from serve.models import MODELS


class Placed(BaseModel):
    """How many copies of a deployment, and what each takes."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    replicas: int = Field(default=1, ge=1)
    autoscaling: dict[str, Any] | None = Field(default=None, description="Serve's autoscaling_config, for `replicas`.")
    num_cpus: float = Field(default=1, ge=0)
    num_gpus: float = Field(default=0, ge=0)
    resources: dict[str, float] = {}
    max_ongoing_requests: int = Field(default=1000, ge=1, description="vLLM queues by itself; beyond this Serve does.")


class ModelArgs(Placed):
    """One model. Name alone is enough.

    checkpoint: a folder or hub id instead of the card's own. engine: vLLM arguments of this place, which win over the
    family's. simulate: FakeEngine's arguments; the model then speaks without weights, for rehearsing a cluster.
    """

    name: str
    checkpoint: str | None = None
    revision: str | None = None
    engine: dict[str, Any] = {}
    simulate: dict[str, Any] | None = None

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in MODELS:
            raise ValueError(f"There is no model {name!r}. Known: {', '.join(MODELS)}.")
        return name


class GatewayArgs(Placed):
    """The front: no torch, no engine, little memory."""

    num_cpus: float = Field(default=0.5, ge=0)
    max_body_mb: int = Field(default=30, ge=1, description="The largest request that is read.")


class Args(BaseModel):
    """The application's `args` in a Serve config."""

    model_config = ConfigDict(extra="forbid")

    models: list[ModelArgs] = Field(min_length=1)
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
        self.models.sort(key=lambda model: order.index(model.name))
        return self
