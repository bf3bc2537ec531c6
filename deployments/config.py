"""Reads the config to serve, from a file or from names of models."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from deployments.applications import APP, APPS, GATEWAYS, applications
from deployments.args import ENTRY_TAGS, Args, ModelArgs, named_entry
from serve.engines.ocr.reader import is_installed
from serve.models import MODELS

HERE = Path(__file__).parent
READER = "rapidocr"
SHARED = ("runtime_env", "logging_config")
"""Fields of an application that each of those made of it gets."""
WRITTEN = {"name", "import_path", "route_prefix", "args", *SHARED}
"""Fields of an application that people may write."""
QUIET = {"enable_access_log": False, "log_level": "WARNING"}


class ConfigError(Exception):
    """The config cannot be served. The message is one sentence for a person."""


class Config(BaseModel):
    """The part of a Serve config that one machine needs."""

    model_config = ConfigDict(extra="ignore")

    args: Args
    host: str = "127.0.0.1"
    port: int = 8000
    logging: dict[str, Any]


def read_config(file: Path) -> Config:
    """Read a Serve config file with our application, or the applications made of it. Raises ConfigError."""
    return parse_config(read_text(file), str(file))


def read_text(file: Path) -> str:
    """Return the text of a config. Raises ConfigError."""
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"The config {file} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"The config {file} is not UTF-8: {error.reason} at byte {error.start}.") from None


def parse_config(text: str, source: str) -> Config:
    """Read a config from YAML text. source: its name in error messages. Raises ConfigError."""
    whole = _read_yaml(text, source)
    generated = [app for app in _ours(whole) if app["import_path"] != APP]
    written = [app for app in _ours(whole) if app["import_path"] == APP]
    if generated and not written:
        args = _args_of_gateways(generated)
    elif len(written) == 1 and not generated:
        args = written[0].get("args") or {}
        if unknown := sorted(map(str, written[0].keys() - WRITTEN)):
            raise ConfigError(f"{source}: applications: {unknown[0]}: it has no effect; what is served is in args.")
    else:
        raise ConfigError(f"The config {source} needs one application with import_path {APP}.")
    http = _mapping(whole, "http_options", source)
    config = _validated(
        source,
        args=args,
        logging={**QUIET, **_mapping(whole, "logging_config", source)},
        **{key: http[key] for key in ("host", "port") if key in http},
    )
    if generated and generated != _applications(config.args, generated):
        raise ConfigError(
            f"The config {source} has applications that do not go together: write them again with "
            "`diptych deploy FILE --print`."
        )
    return config


def serve_config(text: str, source: str) -> dict[str, Any]:
    """Return the config that Serve takes: with an application for the gateways and for each model in place of ours.

    It is made of JSON's values, none of which stands in two places. Raises ConfigError.
    """
    args, whole = parse_config(text, source).args, _read_yaml(text, source)
    others = [app for app in whole["applications"] if app not in _ours(whole)]
    if not all(isinstance(app, dict) for app in others):
        raise ConfigError(f"{source}: applications: give each a name and an import_path.")
    apps = [*_applications(args, _ours(whole)), *({"name": "default", **app} for app in others)]  # that name is Serve's
    try:
        config: dict[str, Any] = json.loads(json.dumps({**whole, "applications": apps}, allow_nan=False))
    except (TypeError, ValueError) as error:  # a date, an infinite number, a list within itself
        raise ConfigError(f"{source}: it has a value that JSON has not, and Ray takes JSON: {error}.") from None
    return config


def _applications(args: Args, given: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the applications for these args, with what the given ones share."""
    shared = {key: given[0][key] for key in SHARED if key in given[0]}
    return [{**app, **shared} for app in applications(args)]


def _read_yaml(text: str, source: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        # PyYAML lets the errors of its types out: of a date without that month, of !!bool perhaps
        raise ConfigError(f"The config {source} is not YAML: {' '.join(str(error).split())}") from None


def _mapping(whole: dict[str, Any], key: str, source: str) -> dict[str, Any]:
    value = whole.get(key) or {}
    if not isinstance(value, dict):
        raise ConfigError(f"{source}: {key}: give keys and values.")
    return value


def _ours(whole: Any) -> list[dict[str, Any]]:
    """Return our applications in a Serve config, as they were written by people or made of that."""
    apps = [app for app in _items(whole, "applications") if isinstance(app, dict)]
    return [app for app in apps if app.get("import_path") in APPS]


def _args_of_gateways(generated: list[dict[str, Any]]) -> Any:
    for app in generated:
        for deployment in _items(app, "deployments"):
            if app["import_path"] == GATEWAYS and isinstance(deployment, dict):
                config = deployment.get("user_config")
                return config.get("args") if isinstance(config, dict) else None
    return None


def default_config() -> Config:
    """Return the config of the embedded toys, and of the reader of text where that is installed."""
    config = read_config(HERE / "local.yaml")
    if not is_installed():
        return config
    args = Args(models=[*config.args.models, ModelArgs(name=READER)], gateway=config.args.gateway)
    return config.model_copy(update={"args": args})


def for_models(models: Sequence[str], gpus: float = 0) -> Config:
    """Return a config for these models. gpus: GPUs for each model; 0.5 is half a GPU. Raises ConfigError."""
    entries = [{**named_entry(name), "num_gpus": gpus if takes_gpus(name) else 0} for name in models]
    return _validated("--models", logging=QUIET, args={"models": entries})


def takes_gpus(name: str) -> bool:
    """Return whether a model's engine runs on GPUs where there are some."""
    return name not in MODELS or MODELS[name].engine == "vllm"


def _validated(source: str, **values: Any) -> Config:
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_sentence(error.errors()[0], values)}") from None


def _sentence(error: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    """Return what is wrong in one sentence that names the model's entry and its field."""
    problem = str(error.get("ctx", {}).get("error") or error["msg"]).rstrip(".") + "."
    if error["type"] == "extra_forbidden":
        problem = "there is no such field."
    place = [part for part in error["loc"] if part != "args"]
    if len(place) > 2 and place[2] in ENTRY_TAGS:
        del place[2]  # pydantic names the kind of entry that it took this one for
    entries = values["args"].get("models") if isinstance(values["args"], Mapping) else None
    if place[:1] == ["models"] and len(place) > 1 and isinstance(entries, list):
        entry = entries[int(place[1])]
        name = entry.get("name") if isinstance(entry, Mapping) else entry
        place = [f"models.{place[1]}" + (f" ({name})" if name else ""), *place[2:]]
    return " ".join(": ".join([*map(str, place), problem]).split())  # a name may hold line breaks, U+0085 among them


def _items(whole: Any, key: str) -> list[Any]:
    items = whole.get(key) if isinstance(whole, dict) else None
    return items if isinstance(items, list) else []
