"""Which config to serve: a file, or one made for the models that are named."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from deployments.args import Args

HERE = Path(__file__).parent
APP = "deployments.app:build"
QUIET = {"enable_access_log": False, "log_level": "WARNING"}


class Refused(Exception):
    """Why it does not start, in one sentence for a person."""


class Config(BaseModel):
    """The part of a Serve config that one machine needs. The whole of it is for `serve deploy` and RayService."""

    model_config = ConfigDict(extra="ignore")

    args: Args
    host: str = "127.0.0.1"
    port: int = 8000
    logging: dict[str, Any]


def read(file: Path) -> Config:
    """A Serve config file with one application, ours. Raises Refused."""
    try:
        whole = yaml.safe_load(file.read_text())
    except OSError as error:
        raise Refused(f"The config {file} cannot be read: {error.strerror}.") from None
    except yaml.YAMLError as error:
        raise Refused(f"The config {file} is not YAML: {' '.join(str(error).split())}") from None
    ours = [a for a in _items(whole, "applications") if isinstance(a, dict) and a.get("import_path") == APP]
    if len(ours) != 1:
        raise Refused(f"The config {file} needs one application with import_path {APP}.")
    http = whole.get("http_options") or {}
    return _checked(
        str(file),
        args=ours[0].get("args") or {},
        logging={**QUIET, **(whole.get("logging_config") or {})},
        **{key: http[key] for key in ("host", "port") if key in http},
    )


def of(models: Sequence[str], gpus: float = 0) -> Config:
    """A config for these models, each with so many GPUs, or so much of one. Raises Refused."""
    engine = {"gpu_memory_utilization": round(0.9 * gpus, 3)} if 0 < gpus < 1 else {}
    placed = [{"name": name, "num_gpus": gpus, "engine": engine} for name in models]
    return _checked("--models", logging=QUIET, args={"models": placed})


def _checked(source: str, **values: Any) -> Config:
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        said = str(first.get("ctx", {}).get("error") or first["msg"])
        where = ".".join(str(part) for part in first["loc"] if part != "args")
        raise Refused(f"{source}: {said}" if "ctx" in first else f"{source}: {where}: {said}.") from None


def _items(whole: Any, key: str) -> list[Any]:
    found = whole.get(key) if isinstance(whole, dict) else None
    return found if isinstance(found, list) else []
