"""Evaluations that people start over HTTP: a labelled folder is uploaded as a zip file, in pieces, and evaluated.

A run is a folder of its own in `started/`, beside the runs that are kept: its state as JSON, and the upload until it
ends. So every gateway of the machine knows all of them, and a gateway that was stopped leaves a run that is seen to
be cut. Scores and answers go to `started/kept/`, of which the oldest are removed. What was uploaded is read by a
process of its own (serve/client/evaluation/uploaded.py), which asks this server as any client does, with the uploader's
key and the priority of a batch.
"""

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from serve.errors import BadRequest, Forbidden, NotFound, Overloaded, Unavailable

log = logging.getLogger(__name__)

PROGRAM = "serve.client.evaluation.uploaded"
ROOT = Path(__file__).parents[2]
AT_ONCE = 1
"""Runs at a time, of all gateways of a machine."""
LISTED = 20
"""Runs that are remembered, the newest."""
ARRIVAL_S = 300
"""Seconds without a piece after which an upload counts as given up."""
READING_S = 60
"""Seconds for which the last piece's request waits, so that wrong labels are told as its error."""
POLL_S = 0.3
"""Seconds between two looks whether a run was cancelled, by any gateway."""
ID = r"[A-Za-z0-9_-]{11}"
STARTED = "started"
KEPT = Path(STARTED, "kept")
"""Folders in the folder of runs."""
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,49}$"
KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TZ", "HOME", "LD_LIBRARY_PATH", "SSL_CERT_FILE")
CUT = "It was cut: its server was stopped."

State = Literal["receiving", "reading", "running", "done", "failed", "cancelled", "cut"]
ALIVE: tuple[State, ...] = ("receiving", "reading", "running")


@dataclass(frozen=True)
class Bounds:
    """Bounds of a started evaluation. mb: MiB, packed and unpacked. minutes: of the whole run.

    kept, kept_mb: the number and the MiB of the runs whose scores and answers stay.
    """

    mb: float
    pictures: int
    minutes: float
    kept: int
    kept_mb: float


class StartRequest(BaseModel, extra="forbid"):
    name: str = Field(pattern=NAME, description="Of the labelled set, as the page shows it.")
    size: int = Field(gt=0, description="Bytes of the zip file.")
    task: str = Field(default="all", description="Which of the labelled tasks.")
    n: Annotated[int, Field(ge=1)] | None = Field(default=None, description="Items of each task; all when left out.")
    models: list[str] | None = Field(
        default=None, min_length=1, max_length=100, description="All that can do the task when left out."
    )


class StartedRun(BaseModel):
    """An evaluation that was started here. received: bytes of its zip file. answered: items, of `items`.

    run: its name among the kept ones, once it is done. message: why it failed, or what was left out of the labels.
    """

    id: str
    object: str = "diptych.evaluation.started"
    name: str
    size: int
    task: str
    n: int | None
    models: list[str] | None
    at: float
    state: State = "receiving"
    received: int = 0
    answered: int = 0
    items: int | None = None
    run: str | None = None
    message: str | None = None


class Caller(BaseModel):
    """The way to this server that a request came by: address, Host header, key. Kept in memory alone."""

    server: str
    host: str | None
    api_key: str | None


class Starts:
    """The started evaluations of a folder of runs. Methods that are no coroutines read files: call them in a thread."""

    def __init__(self, runs: Path, bounds: Bounds) -> None:
        self.runs, self.bounds = runs, bounds
        self.folder = runs / STARTED
        self.kept = runs / KEPT
        self._tasks: set[asyncio.Task[None]] = set()

    def started(self) -> list[StartedRun]:
        """Return the runs, newest first."""
        listed = [self._settled(path) for path in self.folder.glob("*") if re.fullmatch(ID, path.name)]
        runs = sorted((run for run in listed if run is not None), key=lambda run: -run.at)
        for old in runs[LISTED:]:
            if old.state not in ALIVE:
                shutil.rmtree(self.folder / old.id, ignore_errors=True)
        return runs[:LISTED]

    def create(self, request: StartRequest, key: str | None) -> StartedRun:
        """Begin a run, whose folder comes next. Raises BadRequest, Overloaded or Unavailable."""
        most = int(self.bounds.mb * 2**20)
        if request.size > most:
            raise BadRequest(f"The zip file may have {self.bounds.mb:g} MiB.", param="size", code="too_large")
        run = StartedRun(id=secrets.token_urlsafe(8), at=time.time(), **request.model_dump())
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._locked(self.folder / ".lock") as held:
                assert held
                if sum(other.state in ALIVE for other in self.started()) >= AT_ONCE:
                    raise Overloaded("An evaluation is under way: wait for its end, or cancel it.", retry_after_s=30)
                here = self.folder / run.id
                here.mkdir()
                (here / "folder.zip").touch()
                (here / "key").write_text(key or "")
                self._write(run)
        except OSError as error:
            shutil.rmtree(self.folder / run.id, ignore_errors=True)
            raise self._unavailable(error) from None
        return run

    def append(self, name: str, key: str | None, offset: int, piece: bytes) -> StartedRun:
        """Add the next piece of a run's zip file. Raises NotFound, Forbidden, BadRequest or Unavailable."""
        with self._changing(name, key) as run:
            if run.state != "receiving":
                raise BadRequest(f"This evaluation is {run.state}: it takes nothing more.", param="name")
            with (self.folder / run.id / "folder.zip").open("r+b") as file:
                there = file.seek(0, os.SEEK_END)
                if offset != there:
                    raise BadRequest(f"The next piece begins at {there}, not at {offset}.", param="offset")
                if there + len(piece) > run.size:
                    raise BadRequest(f"The zip file was to have {run.size} bytes.", param="size")
                file.write(piece)
            return run.model_copy(update={"received": there + len(piece)})

    def cancel(self, name: str, key: str | None) -> StartedRun:
        """Stop a run, whichever gateway it belongs to; return it as it is now. Raises as `append`."""
        with self._changing(name, key) as run:
            if run.state == "receiving":
                return self._ended(run, "cancelled")
            if run.state in ALIVE:
                (self.folder / run.id / "cancel").touch()
            return run

    async def begin(self, run: StartedRun, caller: Caller) -> StartedRun:
        """Evaluate a run whose zip file is whole; return it once its labels are read.

        Raises BadRequest where they cannot be.
        """
        labels_read: asyncio.Future[StartedRun] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._evaluate(run, caller, labels_read))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with contextlib.suppress(TimeoutError):
            run = await asyncio.wait_for(asyncio.shield(labels_read), READING_S)
        if run.state == "failed":
            raise BadRequest(run.message or "It cannot be read.", param="folder", code="invalid_folder")
        return run

    async def _evaluate(self, run: StartedRun, caller: Caller, labels_read: asyncio.Future[StartedRun]) -> None:
        """Run the program for a run, and write its state until it ends. labels_read: gets the run then."""
        here = self.folder / run.id
        with self._locked(here / "alive", wait=False) as held:
            if not held:  # the last piece came twice
                labels_read.set_result(run)
                return
            process = None
            try:
                run = await asyncio.to_thread(self._begun, run)
                if run.state != "reading":  # it was cancelled before it began
                    return
                process = await self._program(run, caller)
                assert process.stdout is not None
                watching = asyncio.create_task(_kill_when(here / "cancel", process))
                try:
                    async with asyncio.timeout(60 * self.bounds.minutes):
                        async for line in process.stdout:
                            run = _after(run, json.loads(line))
                            if run.state == "failed":
                                break
                            if run.state in ALIVE:
                                await asyncio.to_thread(self._write, run)
                            if run.state == "running" and not labels_read.done():
                                labels_read.set_result(run)
                finally:
                    watching.cancel()
                if run.state in ALIVE:
                    why = f"It ended unexpectedly, with status {await process.wait()}."
                    state: State = "cancelled" if (here / "cancel").exists() else "failed"
                    run = run.model_copy(update={"state": state, "message": why if state == "failed" else None})
            except TimeoutError:
                why = f"It took longer than {self.bounds.minutes:g} minutes."
                run = run.model_copy(update={"state": "failed", "message": why})
            except OSError as error:
                run = run.model_copy(update={"state": "failed", "message": f"{error.strerror or error}."})
            except ValueError as error:  # a line that is no event, or longer than any
                run = run.model_copy(update={"state": "failed", "message": f"It ended unexpectedly: {error}."})
            except asyncio.CancelledError:
                run = run.model_copy(update={"state": "cut", "message": CUT})
                raise
            finally:
                if process is not None:
                    with contextlib.suppress(ProcessLookupError):
                        process.kill()
                    await process.wait()
                await asyncio.to_thread(self._ended, run, run.state)
                if not labels_read.done():
                    labels_read.set_result(run)

    async def _program(self, run: StartedRun, caller: Caller) -> asyncio.subprocess.Process:
        here = self.folder / run.id
        order = {
            "archive": str(here / "folder.zip"),
            "here": str(here / "folder"),
            "keep": str(self.kept.absolute()),
            "max_bytes": int(self.bounds.mb * 2**20),
            "max_pictures": self.bounds.pictures,
            "max_s": max(1, int(60 * self.bounds.minutes)),
            **run.model_dump(include={"name", "task", "n", "models"}),
            **caller.model_dump(),
        }
        kept = {name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ}
        few = {"MALLOC_ARENA_MAX": "2", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", PROGRAM, cwd=ROOT, env=kept | few,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(json.dumps(order).encode() + b"\n")  # stays open: the program ends with this process
        return process

    @contextlib.contextmanager
    def _changing(self, name: str, key: str | None) -> Iterator[StartedRun]:
        """Yield a run that may be changed with this key, while nobody else changes it. Raises as `append`."""
        here = self.folder / name
        if re.fullmatch(ID, name) is None or not here.is_dir():
            raise self._unknown(name)
        try:
            with self._locked(self.folder / ".lock"):
                run = self._settled(here)
                if run is None:
                    raise self._unknown(name)
                if (here / "key").read_text() != (key or ""):
                    raise Forbidden("Another key started this evaluation.", param="name")
                yield run
        except OSError as error:
            raise self._unavailable(error) from None

    def _unknown(self, name: str) -> NotFound:
        return NotFound(f"There is no started evaluation {name[:50]!r}.", param="name", code="run_not_found")

    def _begun(self, run: StartedRun) -> StartedRun:
        """Note that a run whose zip file is whole is read now; return it as it is, which may be cancelled."""
        with self._locked(self.folder / ".lock"):
            now = StartedRun.model_validate_json((self.folder / run.id / "state.json").read_bytes())
            if now.state == "receiving":
                now = run.model_copy(update={"state": "reading"})
                self._write(now)
            return now

    def _settled(self, here: Path) -> StartedRun | None:
        """Return a run as it stands now: one whose gateway is gone is cut. None where there is none."""
        try:
            run = StartedRun.model_validate_json((here / "state.json").read_bytes())
            if run.state == "receiving":
                arrived = (here / "folder.zip").stat()
                run.received = arrived.st_size
                now = time.time()
                late = now - arrived.st_mtime > ARRIVAL_S or now - run.at > 60 * self.bounds.minutes
                if run.received < run.size and late:
                    return self._ended(run, "cut", "Its folder did not arrive.")
                if run.received < run.size or now - arrived.st_mtime < READING_S:
                    return run
            if run.state in ALIVE:
                with self._locked(here / "alive", wait=False) as held:
                    if held:
                        again = StartedRun.model_validate_json((here / "state.json").read_bytes())
                        return self._ended(again, "cut", CUT) if again.state in ALIVE else again
        except (OSError, ValidationError):
            return None
        return run

    def _ended(self, run: StartedRun, state: State, message: str | None = None) -> StartedRun:
        """Write a run's end and remove what was uploaded."""
        here = self.folder / run.id
        run = run.model_copy(update={"state": state, "message": message or run.message})
        with contextlib.suppress(OSError):
            self._write(run)
        shutil.rmtree(here / "folder", ignore_errors=True)
        for name in ("folder.zip", "cancel"):
            (here / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._remove_oldest()
        return run

    def _remove_oldest(self) -> None:
        """Remove kept runs beyond the bounds, but the newest: it may be of the evaluation that writes it now."""
        newest_first = sorted(self.kept.glob("*.jsonl"), key=lambda path: -path.stat().st_mtime_ns)
        left = int(self.bounds.kept_mb * 2**20)
        for number, answers in enumerate(newest_first):
            scores = answers.with_suffix(".json")
            left -= sum(path.stat().st_size for path in (answers, scores) if path.exists())
            if number and (number >= self.bounds.kept or left < 0):
                scores.unlink(missing_ok=True)  # first: a run counts while they are there
                answers.unlink(missing_ok=True)

    def _write(self, run: StartedRun) -> None:
        path = self.folder / run.id / "state.json"
        new = path.with_suffix(".new")
        new.write_text(run.model_dump_json())
        new.replace(path)

    def _unavailable(self, error: OSError) -> Unavailable:
        return Unavailable(f"{self.runs} cannot be written: {error.strerror or error}.", code="evaluations_unavailable")

    @contextlib.contextmanager
    def _locked(self, path: Path, wait: bool = True) -> Iterator[bool]:
        """Hold a file's lock, against other gateways too; yield whether it is held. wait: until another lets it go."""
        with path.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
            else:
                yield True


def _after(run: StartedRun, event: dict[str, Any]) -> StartedRun:
    """Return a run as an event of its program leaves it."""
    changes: dict[str, Any] = {}
    if "answered" in event:
        changes = {"state": "running", "answered": event["answered"], "items": event["items"]}
    elif "kept" in event:
        changes = {"state": "done", "run": event["kept"]}
    elif "failed" in event:
        changes = {"state": "failed", "message": event["failed"]}
    elif event.get("notes") and run.message is None:
        changes = {"message": event["notes"]}
    return run.model_copy(update=changes)


async def _kill_when(there: Path, process: asyncio.subprocess.Process) -> None:
    """Kill a process once a file is there."""
    while process.returncode is None:
        await asyncio.sleep(POLL_S)
        if there.exists() and process.returncode is None:
            process.kill()
