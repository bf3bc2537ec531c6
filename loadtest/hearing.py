"""One answer as its client hears it: when the first words come, the gaps, each model's column, what is wrong with it.

Knows no locust. Both of Diptych's doors are understood: OpenAI's chunks and choices, the tasks' events and replies.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from serve.client.http_client import sentence

TOGETHER_MS = 0.5
"""Lines of one packet are read this close to each other: what arrives together is one piece."""


@dataclass(frozen=True)
class Column:
    """One model's part of a fan-out. latency_ms: as the server measured it. code: of its error, where there is one."""

    model: str
    status: str
    latency_ms: float
    code: str = ""

    @property
    def unread(self) -> bool:
        """It came, but not in the task's form: a model's own doing, and no wonder where pictures are of nothing."""
        return self.code == "parse_error"

    @property
    def fault(self) -> str:
        """What the server did wrong with it; empty where it did not."""
        why = f" ({self.code})" if self.code else ""
        return "" if self.status == "ok" or self.unread else f"{self.model}: {self.status}{why}"


class Hearing:
    """Hears one answer. models: whose columns must be in it; none where one model was asked alone.

    Times are milliseconds since the request was sent: `first` words of a model, the `merged` reply.
    """

    def __init__(self, models: Sequence[str] = ()) -> None:
        self.models = models
        self.first: float | None = None
        self.merged: float | None = None
        self.gaps: list[float] = []
        self.columns: list[Column] = []
        self._faults: list[str] = []
        self._streamed = self._done = self._words = False
        self._event = ""
        self._last: dict[str | int, float] = {}

    def line(self, line: bytes, now: float) -> None:
        """One line of a stream, as soon as it was read."""
        self._streamed = True
        field, _, value = line.strip().partition(b": ")
        if not field:
            self._event = ""  # an empty line ends an event
        elif field == b"event":
            self._event = value.decode()
        elif field == b"data" and value == b"[DONE]":
            self._done = True
        elif field == b"data":
            self._understood(value, now)

    def whole(self, body: bytes, now: float) -> None:
        """A body that came in one piece."""
        self._understood(body, now)

    def broken(self, why: str) -> None:
        """The connection ended before the answer did."""
        self._faults.append(why)

    def faults(self) -> list[str]:
        """What is wrong with it, once it is over."""
        found = list(self._faults)
        if self._streamed and not self._done:
            found.append("the stream ended without [DONE]")
        if not self.models and not self._words:
            found.append("no words")
        if self.models and self.merged is None:
            found.append("no merged reply")
        there = {column.model for column in self.columns}
        found += [f"no column of {model}" for model in self.models if model not in there]
        return found + [column.fault for column in self.columns if column.fault]

    def _understood(self, data: bytes, now: float) -> None:
        try:
            self._told(json.loads(data), now)
        except (ValueError, LookupError, TypeError, AttributeError):
            self._faults.append("not understood")

    def _told(self, said: dict[str, Any], now: float) -> None:
        if self._event == "delta":
            self._heard(said["model"], said["text"], now)
        elif self._event == "reply":
            self._reply(said, now)
        elif self._event == "merged":
            self.merged = now
        elif said.get("error"):
            self._faults.append(f"an error: {sentence(said)}")
        elif "replies" in said:
            for reply in said["replies"]:
                self._reply(reply, now)
            self.merged = now if said["merged"] else None
        else:
            for choice in said["choices"]:
                self._choice(choice, now)

    def _choice(self, choice: dict[str, Any], now: float) -> None:
        about = choice.get("diptych") or {}
        if self.models and choice["index"] == 0:
            if choice["finish_reason"]:
                self.merged = now
            return
        self._heard(choice["index"], (choice.get("delta") or choice.get("message") or {}).get("content"), now)
        if about and choice["finish_reason"]:
            self._column(about)

    def _reply(self, reply: dict[str, Any], now: float) -> None:
        if reply["model"] not in self._last:  # it spoke no delta: its words came with the reply
            self._heard(reply["model"], reply["text"], now)
        self._column(reply)

    def _column(self, about: dict[str, Any]) -> None:
        code = (about.get("error") or {}).get("code", "")
        self.columns.append(Column(about["model"], about["status"], about["latency_ms"], code))

    def _heard(self, whose: str | int, words: str | None, now: float) -> None:
        if not words:
            return
        self._words = True
        if self.first is None:
            self.first = now
        last = self._last.get(whose)
        if last is not None and now - last > TOGETHER_MS:
            self.gaps.append(now - last)
        self._last[whose] = now
