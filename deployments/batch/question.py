"""A question about every picture, checked as a gateway checks a request. Imports no Ray."""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import PIL.Image

from deployments.args import Args
from deployments.config import default_config, read_config
from deployments.local.start import chosen_config
from serve.client.evaluation.run import request_fields
from serve.client.http_client import Misuse
from serve.errors import ServeError
from serve.media.image import Image
from serve.models.base import Model
from serve.router import Router
from serve.tasks import TASKS
from serve.tasks.request import Request

Json = dict[str, Any]
DEADLINE_S = 600.0
"""Seconds for one model's reply, where --deadline gives none: it waits for all of its block."""


@dataclass(frozen=True)
class BatchQuestion:
    """A question about every picture. request: with a picture of one pixel. weights: of each model's reply in merging.

    fields: the request's, as a line has them. models: in catalogue order.
    """

    args: Args
    task: str
    fields: Json
    request: Request
    models: Sequence[str]
    weights: Mapping[str, float]

    def engines(self) -> list[str]:
        """Return the names of the engines that the models need: an adapter's is its base's."""
        bases = {adapter.name: name for name in self.args.engines() for adapter in self.args.adapters(name)}
        return list(dict.fromkeys(bases.get(model, model) for model in self.models))


@dataclass(frozen=True)
class _Card:
    """A route to a model that is only looked at, so that a question is checked as a gateway checks it."""

    model: Model
    full: bool = False
    joining: bool = False

    def answer(self, task: str, request: Request) -> Any:
        raise NotImplementedError

    def speak(self, prompt: Any) -> Any:
        raise NotImplementedError

    async def status(self) -> Any:
        raise NotImplementedError


async def checked_question(options: argparse.Namespace) -> BatchQuestion:
    """Check the question as a gateway checks a request. Raises Misuse naming the field, or ConfigError."""
    args = _args(options)
    given = request_fields(options)
    if options.config is None:
        given.pop("models", None)  # they say what is loaded, and all of it is asked
    fields = {"deadline_s": DEADLINE_S, **given, "priority": "batch"}
    if "weights" in fields:
        fields["weights"] = json.loads(fields["weights"])
    if options.task not in TASKS:
        raise Misuse(f"There is no task {options.task!r}.")
    pixel = Image.of(PIL.Image.new("RGB", (1, 1)))
    try:
        request = TASKS[options.task].request.model_validate({**fields, "image": pixel})
        plan = Router([_Card(model) for model in args.models_by_name.values()]).plan(options.task, request)
    except ServeError as error:
        raise Misuse(f"{error.param}: {error.message}" if error.param else error.message) from None
    except ValueError as error:
        raise Misuse(f"{options.task}: {' '.join(str(error).split())}") from None
    models = [route.model.name for route in plan.routes]
    remote = sorted(set(models) & args.remotes().keys())
    if remote:
        raise Misuse(
            f"{', '.join(remote)}: a model on another server is asked by diptych run; name others in --models."
        )
    grouped = [name for name, entry in args.engines().items() if entry.group is not None and name in models]
    if grouped:
        raise Misuse(f"{', '.join(grouped)}: models of a group take turns, and here all run at once; leave out group.")
    wide = [name for name, entry in args.engines().items() if entry.spans_nodes and name in models]
    if wide:
        raise Misuse(
            f"{', '.join(wide)}: a batch has each engine on one node; ask those that span nodes by diptych run."
        )
    return BatchQuestion(args, options.task, given, request, models, plan.weights)


def _args(options: argparse.Namespace) -> Args:
    """Return the models' settings that the options name. Raises ConfigError."""
    if options.config is not None:
        return read_config(options.config).args
    if options.models is None:
        return default_config().args
    return chosen_config(argparse.Namespace(models=",".join(options.models), config=None, host=None, port=None)).args
