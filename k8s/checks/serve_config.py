"""A RayService's serveConfigV2: Ray's schema, which lets unknown keys pass, and ours for what it says of Diptych."""

from collections.abc import Iterator
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from deployments.config import APP, ConfigError, parse_config
from k8s.checks.rendered import Document, groups


def serve_config(service: Document) -> Iterator[str]:
    """Every fault of it, and whether the cluster has the room that it asks for."""
    from ray.serve.schema import ServeDeploySchema

    text = service["spec"]["serveConfigV2"]
    try:
        whole = yaml.safe_load(text)
        ServeDeploySchema.model_validate(whole)
    except (yaml.YAMLError, ValidationError) as error:
        yield f"serveConfigV2: {' '.join(str(error).split())[:300]}"
        return
    yield from (f"serveConfigV2: {path}: there is no such option" for path in unknown(ServeDeploySchema, whole))
    if any(one["import_path"] == APP for one in whole["applications"]):
        try:
            config = parse_config(text, "serveConfigV2")
        except ConfigError as refused:
            yield str(refused)
        else:
            yield from room(service, config.args)


def unknown(model: type[BaseModel], value: Any, path: str = "") -> Iterator[str]:
    """The keys in `value` that no field of the model, or of the models in it, is called."""
    if not isinstance(value, dict):
        return
    names = {field.alias or name: field for name, field in model.model_fields.items()} | dict(model.model_fields)
    for key, one in value.items():
        if key not in names:
            yield f"{path}{key}"
            continue
        for inner in models(names[key].annotation):
            for i, item in enumerate(one if isinstance(one, list) else [one]):
                place = f"{path}{key}.{i}." if isinstance(one, list) else f"{path}{key}."
                yield from unknown(inner, item, place)


def models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The pydantic model in an annotation such as list[X] or X | None; of several in a union, none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    else:
        found = [model for one in get_args(annotation) for model in models(one)]
        yield from found if len(found) == 1 else []


def room(service: Document, args: Any) -> Iterator[str]:
    """Whether each replica, and all of them at their fewest, find the GPUs and resources that they ask for."""
    have: dict[str, float] = {}
    most: dict[str, float] = {}
    for name, group in groups(service):
        pod = resources(group)
        count = 1 if name == "head" else group["maxReplicas"]
        for what, much in pod.items():
            have[what] = have.get(what, 0) + count * much
            most[what] = max(most.get(what, 0), much)
    wanted: dict[str, float] = {}
    for name, placed in {"gateway": args.gateway, **args.engines()}.items():
        asked = {"CPU": placed.num_cpus, "GPU": placed.num_gpus, **placed.resources}
        for what, much in asked.items():
            wanted[what] = wanted.get(what, 0) + placed.max_replicas * much
            if much > most.get(what, 0):
                yield f"{name} asks for {much:g} {what}, and no pod has more than {most.get(what, 0):g}"
    for what, much in wanted.items():
        if much > have.get(what, 0):
            yield f"the Serve config asks for {much:g} {what} together, and the groups have {have.get(what, 0):g}"


def resources(group: Document) -> dict[str, float]:
    """What `ray start` makes of a group's start parameters and its container's limits."""
    start = group["rayStartParams"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    own = yaml.safe_load(yaml.safe_load(start["resources"])) if "resources" in start else {}
    return {
        "CPU": float(start.get("num-cpus", limits["cpu"])),
        "GPU": float(start.get("num-gpus", limits.get("nvidia.com/gpu", 0))),
        **{name: float(much) for name, much in own.items()},
    }
