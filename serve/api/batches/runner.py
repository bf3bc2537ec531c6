"""Answers the lines of batches, a key's one after the other, behind everybody who waits for an answer.

A line is asked of the app as its request would be, on behalf of the batch's key and with batch priority. An answer is
one line of an output, written at once: after a kill the lines that are there are not asked again. Of the gateways that
share the folder one at a time runs batches, the one that holds its lock.
"""

import asyncio
import contextlib
import fcntl
import itertools
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

import msgspec
from starlette.types import ASGIApp, Message

from serve.accounting import current_account, open_account
from serve.api.authentication import ON_BEHALF
from serve.api.batches.store import (
    BatchObject,
    BatchStatus,
    BatchStore,
    LineError,
    LineErrors,
    Outputs,
    RequestCounts,
    answered_lines,
    line_id,
)
from serve.api.responses import escape_breaks
from serve.errors import Overloaded

log = logging.getLogger(__name__)

POLL_S = 1.0
"""Seconds between two looks for batches that began, or that are to be cancelled."""
CLEAN_S = 600.0
"""Seconds between two removals of what is past its time."""
AT_ONCE = 8
"""Batches that run at a time, each of another key; also those that are ended at a time since they were cancelled."""
MAX_FAULTS = 100
"""Faults of an input that are told."""
MAX_ID = 512
"""Characters of a custom_id."""
TRIES = 6
"""Times that a line is asked while no model can answer (503) for another reason than NOT_NOW."""
NOT_NOW = frozenset({"model_starting", "model_resting", "stopping", Overloaded.code})
"""Codes of errors that end without a change to the request: a line waits for that, until its batch expires."""
LONGEST_WAIT_S = 60.0
TASKS_PREFIX = "/v1/tasks/"
FALSE = (b"false", b"null")
FULL = "storage_full", "The key's files have no room for more answers."
"""Code and message where a key may keep nothing more."""


class BatchLine(msgspec.Struct):
    """A line of an input."""

    custom_id: str
    method: str
    url: str
    body: dict[str, msgspec.Raw]


class LineAnswer(NamedTuple):
    """The response to a line. codes: of its error, and of the models' replies that failed."""

    status: int
    request_id: str
    body: bytes
    retry_after_s: float | None
    codes: frozenset[str] = frozenset()


_LINES = msgspec.json.Decoder(BatchLine)
_ENCODER = msgspec.json.Encoder()
CODES: dict[BatchStatus, tuple[str, str]] = {
    "cancelled": ("batch_cancelled", "The batch was cancelled before this request was answered."),
    "expired": ("batch_expired", "The batch's time was over before this request was answered."),
}


class BatchRunner:
    """Runs the batches of a store. app: asked for each line; None until it is set. at_once: lines of a batch at a time.

    clock: the time in Unix seconds, by which batches expire.
    """

    def __init__(self, store: BatchStore, at_once: int, clock: Callable[[], float] = time.time) -> None:
        self.store, self.at_once, self.clock = store, at_once, clock
        self.app: ASGIApp | None = None
        self._woken = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._jobs: dict[str, asyncio.Task[None]] = {}
        """Batches that run, by their ids: the oldest of its key each."""
        self._cancelled: dict[str, asyncio.Task[None]] = {}
        """Batches that end without having run, since they were cancelled, by their ids."""

    def start(self) -> None:
        """Begin to run batches, also those that an earlier process began."""
        if self._running is None or self._running.done():
            self._running = asyncio.get_running_loop().create_task(self._run())

    def wake(self) -> None:
        """Look for batches at once: one has begun, or is to be cancelled."""
        self._woken.set()

    async def stop(self) -> None:
        """Stop asking. What is not answered is asked by the next runner."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
            self._running = None

    async def _run(self) -> None:
        async with self._lock():
            cleaned = -CLEAN_S
            try:
                while True:
                    self._woken.clear()
                    try:
                        if time.monotonic() - cleaned > CLEAN_S:
                            cleaned = time.monotonic()
                            await asyncio.to_thread(self.store.remove_old)
                        await self._begin_jobs()
                    except OSError as error:
                        log.error("batches cannot be run now: %s", error)
                    with contextlib.suppress(TimeoutError):  # wait_for may swallow a cancellation in Python 3.11
                        async with asyncio.timeout(POLL_S):
                            await self._woken.wait()
            finally:
                jobs = [*self._jobs.values(), *self._cancelled.values()]
                for job in jobs:
                    job.cancel()
                await asyncio.gather(*jobs, return_exceptions=True)

    async def _begin_jobs(self) -> None:
        """Begin each key's oldest batch, and the end of those that were cancelled while they waited for their turn."""
        for jobs in (self._jobs, self._cancelled):
            for batch_id in [batch_id for batch_id, job in jobs.items() if job.done()]:
                del jobs[batch_id]
        for owner, batch in await asyncio.to_thread(self.store.unfinished):
            jobs = self._cancelled if batch.status == "cancelling" else self._jobs
            if len(jobs) < AT_ONCE and batch.id not in self._jobs and batch.id not in self._cancelled:
                jobs[batch.id] = asyncio.create_task(self._finish(owner, batch))

    async def _finish(self, owner: str, batch: BatchObject) -> None:
        """Run a batch to its end. A fault of this program ends it as failed, so that the key's next one runs."""
        try:
            await RunningBatch(self, owner, batch).run()
        except FileNotFoundError:
            await self._give_up(owner, batch, "input_file_missing", "The input file is not there any more.")
        except OSError as error:
            log.error("batch %s waits: %s", batch.id, error)
            await asyncio.sleep(LONGEST_WAIT_S)
        except Exception:
            log.exception("batch %s failed", batch.id)
            await self._give_up(owner, batch, "internal_error", "The server failed unexpectedly.")
        finally:
            self.wake()

    async def _give_up(self, owner: str, batch: BatchObject, code: str, message: str) -> None:
        fault = LineError(code=code, line=None, message=message)
        await asyncio.to_thread(self.store.change, owner, batch.id, lambda kept: _fail(kept, [fault]))

    @contextlib.asynccontextmanager
    async def _lock(self) -> AsyncIterator[None]:
        """Hold the folder's lock, which ends with the process, once no other gateway has it."""
        with (self.store.folder / "lock").open("wb") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    await asyncio.sleep(POLL_S)
                else:
                    break
            yield


@dataclass
class RunningBatch:
    """A batch that runs."""

    runner: BatchRunner
    owner: str
    batch: BatchObject
    counts: RequestCounts = field(default_factory=RequestCounts)
    left: int = 0
    """Bytes that the outputs may still grow by."""
    _lines: Iterator[tuple[int, bytes]] = iter(())
    _reading: asyncio.Lock = field(default_factory=asyncio.Lock)
    _writing: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def store(self) -> BatchStore:
        return self.runner.store

    async def run(self) -> None:
        """Check the input, answer its lines, and end the batch. Raises OSError where the folder cannot be used."""
        path = self.store.path(self.batch.input_file_id)
        outputs = Outputs.of(self.batch.id)
        if self.batch.in_progress_at is None:  # it begins, or was cancelled before it did
            faults, total = await asyncio.to_thread(check_input, path, self.batch.endpoint, self.store.max_lines)
            if not faults and not await asyncio.to_thread(self.store.room, self.owner):
                faults = [LineError(code=FULL[0], line=None, message=FULL[1])]
            if faults:
                await self._change(lambda batch: _fail(batch, faults))
                return
            await self._change(lambda batch: _begin(batch, total))
        answered = await asyncio.to_thread(answered_lines, self.store.path(outputs.output))
        failed = await asyncio.to_thread(answered_lines, self.store.path(outputs.error))
        self.counts = self.batch.request_counts.model_copy(update={"completed": len(answered), "failed": len(failed)})
        room = await asyncio.to_thread(self.store.room, self.owner)
        with (
            path.open("rb") as given,
            self.store.path(outputs.output).open("ab") as output,
            self.store.path(outputs.error).open("ab") as error,
        ):
            self.left = room - output.tell() - error.tell()
            done = answered | failed
            self._lines = (pair for pair in numbered_lines(given) if pair[0] not in done)
            status = await self._answer_lines(output, error)
            if status != "completed":
                await asyncio.to_thread(self._write_unanswered, path, error, status)
            for file in (output, error):
                await asyncio.to_thread(os.fsync, file.fileno())
        if status == "completed":
            await self._change(lambda batch: batch.enter("finalizing"))
        await self._change(lambda batch: batch.enter(status))

    async def _answer_lines(self, output: IO[bytes], error: IO[bytes]) -> BatchStatus:
        """Answer the lines that are left. Return the status with which the batch ends."""
        workers = [asyncio.create_task(self._work(output, error)) for _ in range(self.runner.at_once)]
        working = asyncio.gather(*workers)
        try:
            while True:
                if self.runner.clock() >= self.batch.expires_at:
                    return "expired"
                if self.batch.status == "cancelling":
                    return "cancelled"
                await asyncio.wait({working}, timeout=POLL_S)
                ended = working.done()  # before its last answers are counted
                await self._change(self._count)
                if ended:
                    working.result()
                    return "completed"
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await working

    async def _work(self, output: IO[bytes], error: IO[bytes]) -> None:
        """Answer one line after the other, until there is none."""
        while True:
            async with self._reading:
                number, text = await asyncio.to_thread(next, self._lines, (-1, b""))
            if number < 0:
                return
            line = _LINES.decode(text)
            if self.left <= 0:
                full = {"code": FULL[0], "message": FULL[1]}
                written, good = _written(self.batch.id, number, line.custom_id, None, full), False
            else:
                answer = await self._ask(line)
                written = _written(self.batch.id, number, line.custom_id, answer, None)
                good = answer.status < 400
            async with self._writing:
                # a thread that has begun to write is waited for, also where this batch is stopped
                await _to_the_end(asyncio.to_thread(_append, output if good else error, written))
                self.left -= len(written)
                self.counts.completed += good
                self.counts.failed += not good

    async def _ask(self, line: BatchLine) -> LineAnswer:
        """Return the response to a line, asked again while its models are full or starting."""
        if bytes(line.body.get("stream", FALSE[0])) not in FALSE:
            body = {"message": "stream is not supported in a batch.", "type": "invalid_request_error"}
            error = {"error": {**body, "param": "stream", "code": "unsupported_parameter"}}
            return LineAnswer(400, "", _ENCODER.encode(error), None)
        later = {"priority": "batch"} if line.url.startswith(TASKS_PREFIX) else {"service_tier": "flex"}
        body_text = _ENCODER.encode({**line.body, **later})
        failures = 0
        for tried in itertools.count(1):
            assert self.runner.app is not None
            answer = await call_app(self.runner.app, line.url, body_text, self.owner)
            if answer.status != 429 and not (answer.status == 503 and answer.codes & NOT_NOW):
                failures += 1
                if answer.status != 503 or failures >= TRIES:
                    break
            await asyncio.sleep(min(LONGEST_WAIT_S, (answer.retry_after_s or 1.0) * 2 ** min(tried - 1, 5)))
        return answer

    def _write_unanswered(self, path: Path, error: IO[bytes], status: BatchStatus) -> None:
        """Write an error for each line without an answer. path: of the input. Blocks."""
        outputs = Outputs.of(self.batch.id)
        written = answered_lines(self.store.path(outputs.output)) | answered_lines(self.store.path(outputs.error))
        code, message = CODES[status]
        with path.open("rb") as given:
            for number, text in numbered_lines(given):
                if number not in written:
                    custom_id = _LINES.decode(text).custom_id
                    _append(error, _written(self.batch.id, number, custom_id, None, {"code": code, "message": message}))
                    self.counts.failed += 1
        self.store.change(self.owner, self.batch.id, self._count)

    def _count(self, batch: BatchObject) -> None:
        batch.request_counts = self.counts

    async def _change(self, change: Callable[[BatchObject], None]) -> None:
        self.batch = await asyncio.to_thread(self.store.change, self.owner, self.batch.id, change)


async def call_app(app: ASGIApp, path: str, body: bytes, key: str) -> LineAnswer:
    """Return the app's response to a request on behalf of a key."""
    status, headers, parts = 500, dict[bytes, bytes](), list[bytes]()
    sent = False

    async def receive() -> Message:
        nonlocal sent
        if sent:
            await asyncio.Event().wait()  # the client stays
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status, headers
        if message["type"] == "http.response.start":
            status, headers = message["status"], dict(message["headers"])
        else:
            parts.append(message.get("body", b""))

    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [
            (b"host", b"localhost"),
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ],
        "client": None,
        "server": None,
        "state": {ON_BEHALF: key},
    }
    open_account()  # the app opens another in this task: without it, the last line's would be read
    with contextlib.suppress(Exception):  # a bug is logged and answered by then, and raised again
        await app(scope, receive, send)
    names = {name.lower(): value.decode("latin-1") for name, value in headers.items()}
    retry = names.get(b"retry-after", "")
    account = current_account()
    return LineAnswer(
        status,
        names.get(b"x-request-id", ""),
        b"".join(parts),
        float(retry) if retry.isdigit() else None,
        frozenset({account.error, *account.reply_errors}),
    )


def check_input(path: Path, endpoint: str, max_lines: int) -> tuple[list[LineError], int]:
    """Return the faults of a batch's input, at most MAX_FAULTS, and the number of its lines. Blocks."""
    faults: list[LineError] = []
    ids: set[str] = set()
    total = 0
    with path.open("rb") as file:
        for number, text in numbered_lines(file):
            total += 1
            if total > max_lines:
                return [
                    LineError(code="too_many_lines", line=None, message=f"A batch has at most {max_lines:,} requests.")
                ], total
            fault = _line_fault(text, endpoint, ids)
            if fault is not None:
                faults.append(LineError(code=fault[0], line=number + 1, message=fault[1], param=fault[2]))
                if len(faults) == MAX_FAULTS:
                    return faults, total
    if not total:
        faults.append(LineError(code="empty_file", line=None, message="The file has no requests."))
    return faults, total


def numbered_lines(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield (number from 0, text) of the lines that are not blank, from the file's beginning."""
    file.seek(0)
    for number, text in enumerate(file):
        if not text.isspace():
            yield number, text


def _line_fault(text: bytes, endpoint: str, ids: set[str]) -> tuple[str, str, str | None] | None:
    """Return (code, message, field) of a line's fault. ids: custom_ids so far; this line's is added."""
    try:
        line = _LINES.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return "invalid_json_line", f"This line is not a request: {str(error)[:200]}", None
    if not 0 < len(line.custom_id) <= MAX_ID:
        return "invalid_custom_id", f"custom_id must have 1 to {MAX_ID} characters.", "custom_id"
    if line.custom_id in ids:
        return "duplicate_custom_id", f"custom_id {line.custom_id[:200]!r} is there twice.", "custom_id"
    ids.add(line.custom_id)
    if line.method != "POST":
        return "invalid_method", "method must be POST.", "method"
    if line.url != endpoint:
        return "mismatched_endpoint", f"url must be the batch's endpoint, {endpoint}.", "url"
    return None


def _written(batch: str, number: int, custom_id: str, answer: LineAnswer | None, error: dict[str, str] | None) -> bytes:
    """Return a line of an output, which readers that split at other line breaks too read as one."""
    response = None
    if answer is not None:
        body = msgspec.Raw(answer.body or b"null")
        response = {"status_code": answer.status, "request_id": answer.request_id, "body": body}
    line = {"id": line_id(batch, number), "custom_id": custom_id, "response": response, "error": error}
    return escape_breaks(_ENCODER.encode(line).decode()).encode() + b"\n"


def _append(file: IO[bytes], line: bytes) -> None:
    file.write(line)
    file.flush()


async def _to_the_end(work: Any) -> None:
    """Await work that goes on where this task is cancelled, and is waited for before the cancellation goes on."""
    job = asyncio.ensure_future(work)
    try:
        await asyncio.shield(job)
    except asyncio.CancelledError:
        await job
        raise


def _fail(batch: BatchObject, faults: list[LineError]) -> None:
    """End a batch by its faults: as failed, or as cancelled where it was to be."""
    batch.errors = LineErrors(data=faults)
    batch.enter("cancelled" if batch.status == "cancelling" else "failed")


def _begin(batch: BatchObject, total: int) -> None:
    batch.request_counts = RequestCounts(total=total)
    if batch.status == "validating":  # not cancelled meanwhile
        batch.enter("in_progress")
