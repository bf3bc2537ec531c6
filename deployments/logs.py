"""Our log as lines of JSON, each with the id of the request that it is about, where `DIPTYCH_LOG` names a file for it.

On a cluster that is what the pod's first process writes to (/proc/1/fd/2): Ray keeps what its workers write in files of
its own, which `kubectl logs` does not show. Without the variable Python's own way holds: warnings and worse, as text.
"""

import datetime
import json
import logging
import os
import traceback
from typing import Any

from serve import tracing
from serve.request_id import REQUEST_ID
from serve.wire.edge import ACCESS

FILE, WORDS = "DIPTYCH_LOG", "DIPTYCH_LOG_WORDS"
OURS = ("serve", "deployments")


class Lines(logging.Formatter):
    """A line of JSON a record. who: the process, as a reader would call it.

    Of an exception that befell a request its type and where it was, not its words, which may hold what somebody asked:
    `DIPTYCH_LOG_WORDS=1` adds them.
    """

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
            line["exception"] = _told(record.exc_info[1], words=not request_id or os.environ.get(WORDS) == "1")
        return json.dumps(line)


def configure(who: str, access: bool = False) -> None:
    """Write this process's log where `DIPTYCH_LOG` says, if it does. access: a line for each request, too."""
    if file := os.environ.get(FILE):
        handler = logging.FileHandler(file, mode="a", encoding="utf-8", delay=True)
        handler.setFormatter(Lines(who))
        for name in OURS:
            ours = logging.getLogger(name)
            ours.handlers, ours.propagate = [handler], False
        lines_for_requests(access)


def lines_for_requests(wanted: bool) -> None:
    """From now on with a line for each request, or without."""
    if os.environ.get(FILE):
        ACCESS.setLevel(logging.INFO if wanted else logging.WARNING)


def _told(error: BaseException, words: bool) -> str:
    if words:
        return "".join(traceback.format_exception(error))
    frames = "".join(traceback.format_list(traceback.extract_tb(error.__traceback__)))
    return f"{frames}{type(error).__name__}"
