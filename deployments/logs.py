"""Our log as lines of JSON, each with the id of the request that it is about, where `DIPTYCH_LOG` names a file for it.

Of an exception that befell a request every log of the process, ours or not, gets the type and the place, but not its
words, which may quote what somebody asked (`DIPTYCH_LOG_WORDS=1` adds them). Records are changed where they are made,
since handlers come from uvicorn, Ray and vLLM as well, and some of them later.

On a cluster that is what the pod's first process writes to (/proc/1/fd/2): Ray keeps what its workers write in files of
its own, which `kubectl logs` does not show. Without the variable Python's own way holds: warnings and worse, as text.
"""

import datetime
import json
import logging
import os
import traceback
from collections.abc import Iterator
from typing import Any

from serve import tracing
from serve.request_id import REQUEST_ID
from serve.wire.edge import ACCESS

FILE, WORDS = "DIPTYCH_LOG", "DIPTYCH_LOG_WORDS"
OURS = ("serve", "deployments")
LOOP = "asyncio"
"""Logs what no task waited for: of whose request that was is not known, and its message holds the exception's words."""
DEPTH = 5
"""So many causes of an exception are told."""

_make = logging.getLogRecordFactory()


class Lines(logging.Formatter):
    """A line of JSON a record. who: the process, as a reader would call it."""

    def __init__(self, who: str) -> None:
        super().__init__()
        self.who = who

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": self.who,
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
    """Write this process's log where `DIPTYCH_LOG` says, if it does, and keep requests' words out of every log.

    access_log: write a line for each request, too.
    """
    logging.setLogRecordFactory(_record)
    if file := os.environ.get(FILE):
        handler = logging.FileHandler(file, mode="a", encoding="utf-8", delay=True)
        handler.setFormatter(Lines(process))
        for name in OURS:
            ours = logging.getLogger(name)
            ours.handlers, ours.propagate = [handler], False
        set_access_log(access_log)


def set_access_log(access_log: bool) -> None:
    """Log a line for each request from now on, or none."""
    if os.environ.get(FILE):
        ACCESS.setLevel(logging.INFO if access_log else logging.WARNING)


def _record(*args: Any, **more: Any) -> logging.LogRecord:
    """A log record, without the words of exceptions where it is about a request, or may be."""
    record = _make(*args, **more)
    if os.environ.get(WORDS) == "1" or not (REQUEST_ID.get() or record.name == LOOP):
        return record
    if record.exc_info and record.exc_info[1] is not None:
        record.exc_text, record.exc_info = _wordless(record.exc_info[1]), None
        if record.name == LOOP:
            record.msg, record.args = record.getMessage().split("\n", 1)[0], ()
    if isinstance(record.args, tuple):
        record.args = tuple(type(arg).__name__ if isinstance(arg, BaseException) else arg for arg in record.args)
    return record


def _wordless(error: BaseException) -> str:
    """Types and places of an exception and of those that led to it, the first one first."""
    told = [f"{''.join(traceback.format_tb(link.__traceback__))}{type(link).__qualname__}" for link in _chain(error)]
    return "\n\nThen, on the way out:\n\n".join(reversed(told))


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    for _ in range(DEPTH):
        if link is None:
            return
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
