"""Writes our log as lines of JSON with request ids to the file that `DIPTYCH_LOG` names.

Exceptions raised in a request are logged, in every log of the process, with type and place but without their message,
which may quote a client's text (`DIPTYCH_LOG_WORDS=1` adds it). Records are changed in the record factory, since
handlers are added by uvicorn, Ray and vLLM as well.

On a cluster the file is standard error of the pod's first process (/proc/1/fd/2): Ray keeps its workers' output in
files of its own, which `kubectl logs` does not show. Without the variable Python's default holds: warnings and worse,
as text.
"""

import datetime
import json
import logging
import os
import traceback
from collections.abc import Iterator
from typing import Any

from serve import tracing
from serve.api.request_limits import ACCESS
from serve.tracing import REQUEST_ID

FILE, WORDS = "DIPTYCH_LOG", "DIPTYCH_LOG_WORDS"
OURS = ("serve", "deployments")
LOOP = "asyncio"
"""Logger of exceptions that no task awaited: their request is unknown, and the message is part of the record."""
MAX_CAUSES = 5
"""Largest number of exceptions logged from a chain of causes."""

_make = logging.getLogRecordFactory()


class JsonFormatter(logging.Formatter):
    """Formats a record as a line of JSON. process: the name of this process for a reader."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self.process = process

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": self.process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := REQUEST_ID.get():
            line["request_id"] = request_id
        if trace_id := tracing.trace_id():
            line["trace_id"] = trace_id
        line |= getattr(record, "fields", {})
        if record.exc_info is not None and record.exc_info[1] is not None:
            line["exception"] = "".join(traceback.format_exception(record.exc_info[1]))
        elif record.exc_text:
            line["exception"] = record.exc_text
        return json.dumps(line)


def configure(process: str, access_log: bool = False) -> None:
    """Write this process's log to the file in `DIPTYCH_LOG`, if set, and keep messages of exceptions out of every log.

    access_log: write a line for each request, too.
    """
    logging.setLogRecordFactory(_record)
    if file := os.environ.get(FILE):
        handler = logging.FileHandler(file, mode="a", encoding="utf-8", delay=True)
        handler.setFormatter(JsonFormatter(process))
        for name in OURS:
            ours = logging.getLogger(name)
            ours.handlers, ours.propagate = [handler], False
        set_access_log(access_log)


def set_access_log(access_log: bool) -> None:
    """Turn the access log on or off."""
    if os.environ.get(FILE):
        ACCESS.setLevel(logging.INFO if access_log else logging.WARNING)


def _record(*args: Any, **more: Any) -> logging.LogRecord:
    """Make a log record, without messages of exceptions where it is about a request, or may be."""
    record = _make(*args, **more)
    if os.environ.get(WORDS) == "1" or not (REQUEST_ID.get() or record.name == LOOP):
        return record
    if record.exc_info and record.exc_info[1] is not None:
        record.exc_text, record.exc_info = _without_messages(record.exc_info[1]), None
        if record.name == LOOP:
            record.msg, record.args = record.getMessage().split("\n", 1)[0], ()
    if isinstance(record.args, tuple):
        record.args = tuple(type(arg).__name__ if isinstance(arg, BaseException) else arg for arg in record.args)
    return record


def _without_messages(error: BaseException) -> str:
    """Return types and places of an exception and its causes, the first cause first."""
    links = [f"{''.join(traceback.format_tb(link.__traceback__))}{type(link).__qualname__}" for link in _chain(error)]
    return "\n\nThen, on the way out:\n\n".join(reversed(links))


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    for _ in range(MAX_CAUSES):
        if link is None:
            return
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
