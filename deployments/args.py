"""Defines the schema of a Serve config's `args`: which models, how many, where, and how the gateway serves them."""

import dataclasses
import functools
import itertools
import logging
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from deployments.autoscaling import Scaling
from serve.api.authentication import Access, Requires, is_loopback
from serve.api.evaluation_runs import RunFolder
from serve.api.evaluation_starts import Bounds
from serve.api.keys import Keys, parse_entries
from serve.api.request_log import RequestLogArgs
from serve.engines.vllm.config_check import kind
from serve.limits import Limits, RateLimits
from serve.media.fetch.policy import Policy
from serve.models import MODELS
from serve.models.base import Checkpoint, Model
from serve.models.catalog import is_folder
from serve.models.generic import NamedCheckpoint, generic_model
from serve.models.own import Lora, Own, TaskName, Weight, check_task_weights, lora, own
from serve.models.remote import RemoteModel, remote_model

log = logging.getLogger(__name__)

APPLICATION = "diptych"
"""The name of the gateways' Serve application."""
KEYS = "DIPTYCH_API_KEYS"
"""Environment variable of the gateway: entries name:sha256:HEX with commas between, beside those of keys_file."""


def _own_resource(name: str) -> str:
    if name in ("CPU", "GPU", "memory", "object_store_memory"):
        raise ValueError(f"{name} is a resource of Ray's own: num_cpus and num_gpus are settings beside these.")
    return name


ResourceName = Annotated[str, Field(min_length=1), AfterValidator(_own_resource)]


class Placement(BaseModel):
    """Number of replicas of a deployment, and the resources of each."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    replicas: int = Field(default=1, ge=1)
    autoscaling: Scaling | None = Field(
        default=None, description="In place of `replicas`: a number that follows the load."
    )
    drain_s: float = Field(default=8, ge=0, description="Seconds to finish running requests when it is stopped.")
    num_cpus: float = Field(default=1, ge=0)
    num_gpus: float = Field(default=0, ge=0)
    resources: dict[ResourceName, Annotated[float, Field(ge=0)]] = {}
    max_replicas_per_node: int | None = Field(
        default=None,
        ge=1,
        le=100,
        description="Replicas on one node, at most: 1 keeps a node's end from taking all. "
        "With `surge` a node must be free.",
    )
    surge: bool | None = Field(
        default=None,
        description="When it changes: start the new replica before the old one ends, which takes room for both. "
        "Default: true where it uses no GPU.",
    )
    max_ongoing_requests: int = Field(
        default=1000,
        ge=1,
        description="Prompts in a replica, running and queued, of all gateways together; more are refused.",
    )

    @property
    def sleeps(self) -> bool:
        """True where Serve stops the last replica of an unused model."""
        return self.autoscaling is not None and self.autoscaling.min_replicas == 0

    @property
    def surges(self) -> bool:
        """True where a changed replica is started before the old one ends."""
        return self.num_gpus == 0 if self.surge is None else self.surge

    @property
    def max_replicas(self) -> int:
        """Largest number of replicas that may run at a time."""
        return self.replicas if self.autoscaling is None else self.autoscaling.max_replicas


class ModelPlacement(Placement):
    """A model with an engine of its own.

    engine_args (`engine` in YAML): vLLM arguments of this deployment, which win over the family's. keeps_pictures: of
    several replicas, the same one gets all questions about an image, unless it is crowded. simulate: FakeEngine's
    arguments; the model then answers without weights, for rehearsing a cluster. engine_metrics: export vLLM's own
    metrics through Ray, as ray_vllm_*. group: the group whose memory it shares.
    """

    engine_args: dict[str, Any] = Field(default={}, alias="engine")
    keeps_pictures: bool = True
    simulate: dict[str, Any] | None = None
    engine_metrics: bool = False
    group: str | None = Field(default=None, description="The group that it takes turns in; see `groups`.")
    max_loras: int = Field(
        default=0,
        ge=0,
        le=64,
        description="LoRA adapters that may be loaded while it runs, beside those of the config; see "
        "`gateway.adapters`. It holds memory for so many.",
    )
    max_lora_rank: Literal[1, 8, 16, 32, 64, 128, 256, 320, 512] = Field(
        default=16, description="The largest rank of these."
    )
    required: bool = Field(
        default=False, description="A new gateway is ready, and takes over from an older one, only once it was loaded."
    )
    spans_nodes: bool = Field(
        default=False,
        description="A replica's GPUs may be on several nodes, for a model too large for one. Each GPU then comes with "
        "`resources`.",
    )
    retry_s: float = Field(
        default=30,
        gt=0,
        description="Seconds until a model that could not be loaded is tried again; twice as long after each try.",
    )
    retry_max_s: float = Field(default=900, gt=0, description="The longest of these times.")

    def bundles(self) -> list[dict[str, float]]:
        """Return what a replica that spans nodes reserves, a GPU at a time. Its own process is in the first bundle."""
        part = {"GPU": 1.0, **self.resources}
        return [{"CPU": self.num_cpus, **part}, *[part] * (int(self.num_gpus) - 1)]

    def retries(self) -> Iterator[float]:
        """Yield the seconds to wait before each further try to load it."""
        for tries in itertools.count():
            yield min(self.retry_s * 2 ** min(tries, 60), self.retry_max_s)


GroupName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
"""A part of a deployment's name, in which # has a meaning to Ray."""


class GroupArgs(BaseModel):
    """Models that share one GPU, or the main memory, and of which a few are awake at a time (deployments/groups)."""

    model_config = ConfigDict(extra="forbid")

    awake: int = Field(ge=1, description="Models awake at a time. The GPU must hold the largest of them together.")
    sleep_level: Literal[1, 2] = Field(
        default=1,
        description="1: a sleeping model's weights are in main memory. 2: they are dropped, and read from disk again. "
        "Without a GPU its engine is stopped.",
    )
    min_awake_s: float = Field(default=5, ge=0, description="Seconds that a model stays awake at least.")
    max_wait_s: float = Field(
        default=20,
        ge=0,
        description="Seconds that a request waits for the place of an idle model; then a busy one has to give up its "
        "own. Batch requests: five times as long.",
    )
    switches_per_minute: int = Field(default=20, ge=1, description="Models woken in any minute, at most.")
    max_running: int = Field(
        default=128,
        ge=1,
        description="Requests in a model's engine at a time; others wait before it. It sleeps once these have ended.",
    )


class ModelArgs(ModelPlacement):
    """A model of the catalogue. A name is enough. checkpoint: a folder or hub id in place of the catalogue's."""

    name: str
    checkpoint: str | None = None
    revision: str | None = None
    weight: Weight | None = Field(
        default=None, description="Weight of its replies in merging; default: the catalogue's."
    )
    task_weights: dict[TaskName, Weight] = Field(
        default={},
        description="By task, where another: `{vqa: 2, ocr: 0.5}`. Without `weight`, the catalogue's stay.",
    )
    check: bool = Field(default=False, description="Ask it about drawn scenes before it counts as ready.")

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in MODELS:
            raise ValueError(
                f"There is no model {name!r}. Known: {', '.join(MODELS)}. A model of your own says what it is `like`, "
                "or is a LoRA `adapter` on a `base`; any other checkpoint is a `hub` id or a `folder`; one on "
                "another server names its `remote` URL."
            )
        return name

    @model_validator(mode="after")
    def _weighs_its_tasks(self) -> Self:
        check_task_weights(self.name, self.task_weights, list(MODELS[self.name].skills))
        return self

    def model(self) -> Model:
        """Return the catalogue's model with this entry's weights and checkpoint."""
        known = MODELS[self.name]
        weight = known.weight if self.weight is None else self.weight
        by_task = {**(known.task_weights if self.weight is None else {}), **self.task_weights}
        if self.checkpoint is None:
            checkpoint = dataclasses.replace(known.checkpoint, revision=self.revision or known.checkpoint.revision)
        else:
            checkpoint = Checkpoint(self.checkpoint, self.revision, expect=kind(known.checkpoint.expect))
        return dataclasses.replace(known, weight=weight, task_weights=by_task, checkpoint=checkpoint)


class OwnArgs(Own, ModelPlacement):
    """A fine-tune with weights of its own (serve/models/own.py)."""

    def model(self) -> Model:
        return own(self)


class NamedArgs(NamedCheckpoint, ModelPlacement):
    """A checkpoint of any architecture (serve/models/generic.py)."""

    def model(self) -> Model:
        return generic_model(self)


EngineArgs = ModelArgs | OwnArgs | NamedArgs
"""An entry of a model with an engine of its own."""


def _check_span(entry: EngineArgs) -> None:
    """Raise ValueError where a model that spans nodes does not say how, or cannot."""
    if not entry.spans_nodes:
        return
    sizes = [entry.engine_args.get(f"{way}_parallel_size", 1) for way in ("tensor", "pipeline")]
    parts = math.prod(size for size in sizes if isinstance(size, int))
    if parts < 2 or entry.num_gpus != parts:
        raise ValueError(
            f"{entry.name}: spans_nodes: num_gpus is {entry.num_gpus:g}; it must be 2 or more, and engine: "
            f"tensor_parallel_size by pipeline_parallel_size, which is {parts}."
        )
    if entry.group is not None:
        raise ValueError(f"{entry.name}: spans_nodes: a group shares one GPU.")
    if entry.max_replicas_per_node is not None:
        raise ValueError(
            f"{entry.name}: max_replicas_per_node: leave it out, as a replica that spans nodes is on several."
        )
    if entry.engine_args.get("distributed_executor_backend", "ray") != "ray":
        raise ValueError(f"{entry.name}: engine: distributed_executor_backend must be ray where it spans nodes.")


def _with_length(entry: EngineArgs) -> Model:
    """Return an entry's model, with the length of context that the deployment gives it."""
    model, length = entry.model(), entry.engine_args.get("max_model_len")
    if not isinstance(length, int):
        return model
    return dataclasses.replace(model, family_args={**model.family_args, "max_model_len": length})


class LoraArgs(Lora):
    """A LoRA adapter. It runs in its base's replicas."""


ENTRY_TAGS = ("known", "own", "named", "adapter", "remote")


def _entry_tag(value: Any) -> str:
    """Return which of ENTRY_TAGS an entry has, by the field that only such an entry has."""
    fields = value if isinstance(value, Mapping) else vars(value) if isinstance(value, BaseModel) else {}
    if "remote" in fields:
        return "remote"
    if {"hub", "folder"} & fields.keys():
        return "named"
    return "adapter" if {"base", "adapter"} & fields.keys() else "own" if "like" in fields else "known"


Entry = Annotated[
    Annotated[ModelArgs, Tag("known")]
    | Annotated[OwnArgs, Tag("own")]
    | Annotated[NamedArgs, Tag("named")]
    | Annotated[LoraArgs, Tag("adapter")]
    | Annotated[RemoteModel, Tag("remote")],
    Discriminator(_entry_tag),
]


class Listen(BaseModel):
    """A port that gateways open themselves."""

    model_config = ConfigDict(extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(ge=1, le=65535)


class AdapterArgs(BaseModel):
    """LoRA adapters that are loaded while the server runs: from where, and the file that keeps which."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: Path = Field(
        description="The folder on the machines of the models' processes from which adapters may be loaded; what leads "
        "out of it, as a link, is refused."
    )
    file: Path = Field(
        description="A JSON file that keeps which are loaded, on the gateway's machine or on a volume of all gateways: "
        "they share it."
    )
    max_mb: float = Field(default=500, gt=0, description="Size of an adapter, in MiB.")

    @field_validator("folder")
    @classmethod
    def _absolute(cls, folder: Path) -> Path:
        if not folder.is_absolute():
            raise ValueError("give its absolute path, which every machine knows.")
        return Path(os.path.normpath(folder))


class GatewayArgs(Limits, Placement):
    """The gateway: HTTP, routing and merging, without torch or an engine. Its limits are in serve/limits.py."""

    num_cpus: float = Field(default=0.5, ge=0)
    images: Policy = Field(default=Policy(), description="Rules for images by URL.")
    listen: Listen | None = Field(
        default=None, description="Its own port, which is faster than the proxy of Serve's ingress."
    )
    memory_mb: int | None = Field(
        default=None,
        ge=128,
        description="Memory for all its requests: bodies, files, pixels. Default: 60 % of its container's memory, or "
        "an eighth of the machine's.",
    )
    leave_s: float = Field(
        default=0,
        ge=0,
        description="Seconds in which a gateway that is being stopped fails /health and still answers, so that load "
        "balancers use others. A new one counts as started this long after it answers.",
    )
    wait_s: float = Field(
        default=600,
        ge=0,
        description="On a cluster: seconds for which a new gateway waits for models that are being loaded, before it "
        "counts as started. For `required` ones it waits as long as it takes.",
    )
    keys_file: Path | None = Field(
        default=None,
        description="A file on the gateway's machine with a line name:sha256:HEX:SETTING=VALUE for each key, which "
        "`diptych keys` writes; read again when it changes. When empty, every key is refused.",
    )
    usage_file: Path | None = Field(
        default=None,
        description="Keeps the tokens that keys have used over a restart: an SQLite file on the gateway's machine. All "
        "gateways of a machine share it.",
    )
    access_log: bool = Field(
        default=False,
        description="Log each request in DIPTYCH_LOG: route, status, time, key, tokens; never its content.",
    )
    request_log: RequestLogArgs | None = Field(
        default=None, description="Writes a line of JSON for each POST request to a file."
    )
    metrics: Literal["key", "open", "closed"] = Field(default="key", description="Who may read /metrics.")
    ready: Requires = Field(default="key", description="Who may read /ready.")
    page: Requires = Field(default="key", description="Who may load the page; its API requests still need a key.")
    hosts: list[str] = Field(
        default=[],
        description="Host names of the server: vision.example.com, *.example.com. On loopback without keys it answers "
        "to these and the machine's own; elsewhere to any, unless this list has names.",
    )
    salt_caches: bool = Field(
        default=False,
        description="Share no engine cache entries between keys, so that response times reveal nothing about other "
        "keys' requests. Costs what sharing saves.",
    )
    arena: Path | None = Field(
        default=None,
        description="Opens the blind arena: an SQLite file on the gateway's machine that keeps its votes. All gateways "
        "of a machine share it.",
    )
    evaluations: Path | None = Field(
        default=None,
        description="A folder on the gateway's machine; the page /evaluations shows the runs that `diptych evaluate "
        "--keep` wrote there.",
    )
    evaluations_mb: float = Field(
        default=0,
        ge=0,
        le=2000,
        description="Lets people start evaluations on that page: of labelled folders of at most so many MiB, packed "
        "and unpacked. One runs at a time. 0: nobody may.",
    )
    evaluations_pictures: int = Field(default=1000, ge=1, description="Pictures of such a folder.")
    evaluations_minutes: float = Field(
        default=60, gt=0, description="Minutes for its folder to arrive, and for the run."
    )
    evaluations_kept: int = Field(
        default=100, ge=1, description="Runs that people started whose scores and answers are kept: the newest."
    )
    evaluations_kept_mb: float = Field(
        default=1000,
        gt=0,
        description="Size of all these, in MiB; beyond it the oldest are removed. What `diptych evaluate --keep` wrote "
        "stays.",
    )
    results: Path | None = Field(
        default=None,
        description="Lets people share results: an SQLite file on the gateway's machine that keeps them. Whoever has "
        "the address of a result sees it, without a key.",
    )
    results_days: float = Field(default=30, gt=0, le=3650, description="Days after which a shared result is removed.")
    results_mb: float = Field(
        default=200, gt=0, description="Size of all shared results, in MiB; beyond it the oldest are removed."
    )
    batches: Path | None = Field(
        default=None,
        description="Opens /v1/files and /v1/batches: a folder on the gateway's machine that keeps each key's files. "
        "All gateways of a machine share it.",
    )
    batches_days: float = Field(
        default=30, ge=2, le=3650, description="Days after which a file is removed, and a batch that has ended."
    )
    batches_mb: float = Field(default=1000, gt=0, description="Size of all files and batches of a key, in MiB.")
    batch_lines: int = Field(default=50_000, ge=1, description="Requests of a batch.")
    batch_requests_at_once: int = Field(default=16, ge=1, description="Requests of a batch that run at a time.")
    adapters: AdapterArgs | None = Field(
        default=None,
        description="Opens /v1/load_lora_adapter and /v1/unload_lora_adapter to keys with the scope admin.",
    )
    cors: list[str] = Field(
        default=[], description="Origins whose pages may call the API: https://app.example.com, or *."
    )

    def asks_for_keys(self) -> bool:
        """Return whether keys are configured here, or in this process's environment."""
        return self.keys_file is not None or KEYS in os.environ

    def shares_quotas(self) -> bool:
        """Return whether keys' requests and tokens are counted for several gateways together."""
        return self.asks_for_keys() and self.max_replicas > 1

    def limits(self) -> Limits:
        """Return the limits on requests."""
        return Limits(**self._fields_of(Limits))

    def runs(self) -> RunFolder | None:
        """Return the folder of evaluated runs, and whether evaluations may be started."""
        if self.evaluations is None:
            return None
        allowed = Bounds(
            self.evaluations_mb,
            self.evaluations_pictures,
            self.evaluations_minutes,
            self.evaluations_kept,
            self.evaluations_kept_mb,
        )
        return RunFolder(self.evaluations, allowed if self.evaluations_mb else None)

    def _fields_of(self, kind: type[RateLimits]) -> dict[str, Any]:
        """Return the settings that are fields of this kind of limits."""
        return {name: getattr(self, name) for name in kind.model_fields}

    def access(self) -> Access:
        """Read the keys and return who may ask. Raises ValueError or OSError where keys are configured but missing."""
        keys = None
        if self.asks_for_keys():
            entries = parse_entries(os.environ.get(KEYS, ""))
            if self.keys_file is not None:
                entries += parse_entries(self.keys_file.read_text(encoding="utf-8"))
            keys = Keys(entries, may_be_none=self.keys_file is not None)
            if keys.plain:
                log.warning(
                    "Keys in plain text: %s. Put the lines in their place that `diptych keys hash NAME` prints.",
                    ", ".join(keys.plain),
                )
            if not entries:
                log.warning("There is no key in %s: nobody is let in, and only /health answers.", self.keys_file)
        elif RateLimits(**self._fields_of(RateLimits)) != RateLimits() or self.salt_caches:
            names = ", ".join(RateLimits.model_fields)
            raise ValueError(f"{names} and salt_caches are each key's: set keys_file or {KEYS}.")
        return Access(
            keys=keys,
            metrics=self.metrics,
            ready=self.ready,
            page=self.page,
            results=self.results is not None,
            hosts=self._hosts(),
            salt_caches=self.salt_caches,
        )

    def warning(self) -> str | None:
        """Return a warning for the operator where anybody who can reach the gateway may use it."""
        if self.listen is None or self.asks_for_keys() or is_loopback(self.listen.host):
            return None
        return (
            f"WARNING: nobody is asked for a key, and {self.listen.host} is open to other machines: whoever reaches "
            f"port {self.listen.port} may use the models. Make a key for each user (`diptych keys add NAME`) or "
            "listen on 127.0.0.1."
        )

    def _hosts(self) -> frozenset[str] | None:
        """Return the host names it answers to beside this machine's own; None for any."""
        local = self.listen is not None and is_loopback(self.listen.host) and not self.asks_for_keys()
        return frozenset(self.hosts) if self.hosts or local else None


def named_entry(name: str) -> dict[str, str]:
    """Return the entry that a name alone stands for: a folder's, a hub id's, or a model's of the catalogue."""
    if "/" not in name:
        return {"name": name}
    return {"folder": name} if is_folder(name) or Path(name).is_dir() else {"hub": name}


class Args(BaseModel):
    """The models, groups and gateways to serve: the `args` of a config's application."""

    model_config = ConfigDict(extra="forbid")

    models: list[Entry] = Field(min_length=1)
    groups: dict[GroupName, GroupArgs] = {}
    gateway: GatewayArgs = GatewayArgs()

    @model_validator(mode="before")
    @classmethod
    def _names_alone(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and isinstance(value.get("models"), list):
            models = [named_entry(model) if isinstance(model, str) else model for model in value["models"]]
            return {**value, "models": models}
        return value

    @model_validator(mode="after")
    def _each_once(self) -> "Args":
        names = [model.name for model in self.models]
        repeated = {name for name in names if names.count(name) > 1}
        if repeated:
            raise ValueError(f"Named twice: {', '.join(sorted(repeated))}.")
        order = list(MODELS)
        self.models.sort(key=lambda entry: order.index(entry.name) if entry.name in MODELS else len(order))
        _ = self.models_by_name  # raises where an adapter does not go with its base
        for entry in self.engines().values():
            self._check_group(entry)
            _check_span(entry)
            if entry.max_loras and self.models_by_name[entry.name].engine != "vllm":
                raise ValueError(f"{entry.name}: max_loras: it takes no adapters.")
        for name in self.groups:
            if not self.members(name):
                raise ValueError(f"groups: {name} has no models: give some `group: {name}`.")
        return self

    def _check_group(self, entry: EngineArgs) -> None:
        """Raise ValueError where a model cannot take turns in its group."""
        if entry.group is None:
            return
        if entry.group not in self.groups:
            raise ValueError(
                f"{entry.name}: group: there is no {entry.group!r}. Groups: {', '.join(self.groups) or 'none'}."
            )
        if entry.replicas > 1 or entry.autoscaling is not None:
            raise ValueError(f"{entry.name}: a model of a group has one replica: leave out replicas and autoscaling.")
        if self.groups[entry.group].sleep_level == 2 and self.adapters(entry.name):
            raise ValueError(f"{entry.name}: sleep_level 2 would lose its LoRA adapters; take 1.")
        if entry.max_loras:
            raise ValueError(f"{entry.name}: max_loras: a model of a group sleeps; name its adapters in the config.")
        if self.group_gpus(entry.group) > 1:
            awake = self.groups[entry.group].awake
            raise ValueError(
                f"{entry.name}: a group shares one GPU, and the {awake} largest num_gpus of {entry.group} are more."
            )

    @functools.cached_property
    def models_by_name(self) -> dict[str, Model]:
        """Models by name: the catalogue's in its order, then models of your own in the order of the config.

        Built once in a process. Raises ValueError naming an adapter that does not go with its base.
        """
        bases = {name: _with_length(entry) for name, entry in self.engines().items()}
        models = {}
        for entry in self.models:
            if isinstance(entry, RemoteModel):
                models[entry.name] = remote_model(entry)
            elif not isinstance(entry, LoraArgs):
                models[entry.name] = bases[entry.name]
            elif entry.base in bases:
                try:
                    models[entry.name] = lora(entry, bases[entry.base])
                except ValueError as error:
                    raise ValueError(f"{entry.name}: {error}") from None
            else:
                raise ValueError(
                    f"{entry.name}: base: {entry.base!r} is not served here with an engine of its own. "
                    f"Served: {', '.join(bases) or 'none'}."
                )
        return models

    def __getstate__(self) -> dict[Any, Any]:
        """Leave the models out of a pickle: they hold functions, and another process builds its own."""
        state = super().__getstate__()
        fields = {name: value for name, value in state["__dict__"].items() if name != "models_by_name"}
        return {**state, "__dict__": fields}

    def engines(self) -> dict[str, EngineArgs]:
        """Return the entries of models with an engine of their own, by name."""
        return {entry.name: entry for entry in self.models if isinstance(entry, EngineArgs)}

    def with_checkpoint(self) -> list[str]:
        """Return the names of models that need a checkpoint's files: none that is simulated, a reader of text, or on
        another server."""
        engines = {
            name
            for name, entry in self.engines().items()
            if entry.simulate is None and self.models_by_name[name].engine == "vllm"
        }
        return [
            entry.name
            for entry in self.models
            if (entry.base if isinstance(entry, LoraArgs) else entry.name) in engines
        ]

    def application(self, name: str) -> str:
        """Return the name of the Serve application that holds a model's engine: its own, or its group's."""
        group = self.engines()[name].group
        return name if group is None else f"group {group}"  # no model's name has a space

    def members(self, group: str) -> list[EngineArgs]:
        """Return the entries of a group's models."""
        return [entry for entry in self.engines().values() if entry.group == group]

    def group_gpus(self, group: str) -> float:
        """Return the part of a GPU that a group needs: what the largest of it take that may be awake together."""
        largest = sorted((entry.num_gpus for entry in self.members(group)), reverse=True)
        return round(sum(largest[: self.groups[group].awake]), 4)

    def reserved_gpus(self, name: str) -> float:
        """Return what Ray reserves for a replica of a model: in a group an equal part of what the group needs."""
        entry = self.engines()[name]
        if entry.group is None or not entry.num_gpus:
            return entry.num_gpus
        sharing = sum(member.num_gpus > 0 for member in self.members(entry.group))
        return int(1e4 * self.group_gpus(entry.group) / sharing) / 1e4

    def needed_gpus(self) -> dict[str, float]:
        """Return what Ray reserves for all replicas of each model."""
        return {name: self.reserved_gpus(name) * entry.max_replicas for name, entry in self.engines().items()}

    def remotes(self) -> dict[str, RemoteModel]:
        """Return the entries of models on other servers, by name."""
        return {entry.name: entry for entry in self.models if isinstance(entry, RemoteModel)}

    def simulated_gpus(self) -> float | None:
        """Return the number of GPUs to simulate, where every engine is simulated; else None, for the real ones."""
        if any(entry.simulate is None for entry in self.engines().values()):
            return None
        return sum(self.needed_gpus().values())

    def adapters(self, base: str) -> list[LoraArgs]:
        """Return the LoRA adapters that share this base's engine."""
        return [entry for entry in self.models if isinstance(entry, LoraArgs) and entry.base == base]
