"""Reads an answer as its client receives it: the time of the first words, gaps, each model's column, faults.

Knows no locust. Both of Diptych's routes are understood: OpenAI's chunks and choices, the tasks' events and replies.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from serve.client.http_client import sentence

TOGETHER_MS = 0.5
"""Lines of one packet are read this close to each other: they count as one piece."""
UNREAD = "parse_error"
"""Code of a reply whose words are not in the task's form, which is no fault of the server; also where all are so."""


@dataclass(frozen=True)
class Column:
    """A model's part of a fan-out. latency_ms: as the server measured it. code: of its error, where there is one."""

    model: str
    status: str
    latency_ms: float
    code: str = ""

    @property
    def unread(self) -> bool:
        """Return whether the model's words are not in the task's form."""
        return self.code == UNREAD

    @property
    def fault(self) -> str:
        """Return the server's fault in this column; empty where there is none."""
        why = f" ({self.code})" if self.code else ""
        return "" if self.status == "ok" or self.unread else f"{self.model}: {self.status}{why}"


class ResponseReader:
    """Reads one answer. models: whose columns must be in it; none where one model was asked alone.

    Times are milliseconds since the request was sent: `first` words of a model, the `merged` reply. `code` is an
    error's, where the answer as a whole is one.
    """

    def __init__(self, models: Sequence[str] = ()) -> None:
        self.models = models
        self.first: float | None = None
        self.merged: float | None = None
        self.gaps: list[float] = []
        self.columns: list[Column] = []
        self.code = ""
        self.whole = False
        self._faults: list[str] = []
        self._streamed = self._has_words = False
        self._event = ""
        self._last: dict[str | int, float] = {}

    def line(self, line: bytes, now: float) -> None:
        """Read one line of a stream."""
        self._streamed = True
        field, _, value = line.strip().partition(b": ")
        if not field:
            self._event = ""  # an empty line ends an event
        elif field == b"event":
            self._event = value.decode()
        elif field == b"data" and value == b"[DONE]":
            self.whole = True
        elif field == b"data":
            self._read(value, now)

    def body(self, body: bytes, now: float) -> None:
        """Read a body that came in one piece."""
        self.whole = self._read(body, now)

    def broken(self, why: str) -> None:
        """Record that the connection ended before the answer did."""
        self._faults.append(why)

    def faults(self) -> list[str]:
        """Return the faults of the answer, once it has ended."""
        faults = list(self._faults)
        if self._streamed and not self.whole:
            faults.append("the stream ended without [DONE]")
        if self.code == UNREAD:
            return faults
        if not self.models and not self._has_words:
            faults.append("no words")
        if self.models and self.merged is None:
            faults.append("no merged reply")
        present = {column.model for column in self.columns}
        faults += [f"no column of {model}" for model in self.models if model not in present]
        return faults + [column.fault for column in self.columns if column.fault]

    def _read(self, data: bytes, now: float) -> bool:
        """Read a JSON object. Return whether it has one of the forms that Diptych sends."""
        try:
            self._object(json.loads(data), now)
        except (ValueError, LookupError, TypeError, AttributeError):
            self._faults.append("not understood")
            return False
        return True

    def _object(self, body: dict[str, Any], now: float) -> None:
        if self._event == "delta":
            self._words(body["model"], body["text"], now)
        elif self._event == "reply":
            self._reply(body, now)
        elif self._event == "merged":
            self.merged = now
        elif body.get("error"):
            self.code = body["error"].get("code") or ""
            if self.code != UNREAD:
                self._faults.append(f"an error: {sentence(body)}")
        elif "replies" in body:
            for reply in body["replies"]:
                self._reply(reply, now)
            self.merged = now if body["merged"] else None
        else:
            for choice in body["choices"]:
                self._choice(choice, now)

    def _choice(self, choice: dict[str, Any], now: float) -> None:
        column = choice.get("diptych") or {}
        if self.models and choice["index"] == 0:
            if choice["finish_reason"]:
                self.merged = now
            return
        self._words(choice["index"], (choice.get("delta") or choice.get("message") or {}).get("content"), now)
        if column and choice["finish_reason"]:
            self._column(column)

    def _reply(self, reply: dict[str, Any], now: float) -> None:
        if reply["model"] not in self._last:  # there was no delta: the words come with the reply
            self._words(reply["model"], reply["text"], now)
        self._column(reply)

    def _column(self, column: dict[str, Any]) -> None:
        code = (column.get("error") or {}).get("code", "")
        self.columns.append(Column(column["model"], column["status"], column["latency_ms"], code))

    def _words(self, column: str | int, text: str | None, now: float) -> None:
        if not text:
            return
        self._has_words = True
        if self.first is None:
            self.first = now
        last = self._last.get(column)
        if last is not None and now - last > TOGETHER_MS:
            self.gaps.append(now - last)
        self._last[column] = now
