"""Counts what a request uses: tokens, pictures, calls of models. Access log, metrics and budgets of keys read it.

Where the operator switched that on, it also collects what was asked and answered, for the request log.
"""

from collections import Counter
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

MAX_CHARACTERS = 64 * 1024
"""Characters of a request's contents that are collected; what exceeds them is cut."""
MAX_PARTS = 256
"""Texts and pictures of a request that are collected."""


class Contents:
    """The texts of a request and its replies, up to MAX_CHARACTERS, and digests of its pictures (BLAKE2b)."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.pictures: list[str] = []
        self.replies: list[dict[str, Any]] = []
        self.cut = False
        self._left = MAX_CHARACTERS

    def add_texts(self, texts: Iterable[str]) -> None:
        """Add what the client wrote."""
        for text in texts:
            if self._room(self.texts):
                self.texts.append(self._fitting(text))

    def add_picture(self, digest: str | None) -> None:
        """Add a picture by its digest."""
        if digest is not None and self._room(self.pictures):
            self.pictures.append(digest)

    def add_reply(self, model: str, text: str, calls: Iterable[tuple[str, str]] = ()) -> None:
        """Add what a model wrote. calls: of functions, each with its name and the JSON text of its arguments."""
        if not self._room(self.replies):
            return
        reply: dict[str, Any] = {"model": model, "text": self._fitting(text)}
        self.replies.append(reply)
        for name, arguments in calls:
            written = reply.setdefault("tool_calls", [])
            if self._room(written):
                written.append({"name": self._fitting(name), "arguments": self._fitting(arguments)})

    def record(self) -> dict[str, Any]:
        """Return all as fields of a log's line."""
        return {"texts": self.texts, "pictures_blake2b": self.pictures, "replies": self.replies, "cut": self.cut}

    def _room(self, parts: list[Any]) -> bool:
        room = len(parts) < MAX_PARTS
        self.cut |= not room
        return room

    def _fitting(self, text: str) -> str:
        kept = text[: self._left]
        self._left -= len(kept)
        self.cut |= len(kept) < len(text)
        return kept


@dataclass
class Account:
    """A request's use so far. key: the name of its API key; "" where the server asks for none.

    input_tokens, output_tokens: of every model that was called, cut and failed ones too. pictures: a video is one.
    calls: of each model, as a judge too. task: the last one that it asked. error: the code of its error. reply_errors:
    the codes of failed replies to its task. contents: None where they are not collected.
    """

    key: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    pictures: int = 0
    calls: Counter[str] = field(default_factory=Counter)
    task: str = ""
    error: str = ""
    reply_errors: set[str] = field(default_factory=set)
    contents: Contents | None = None

    def add_tokens(self, read: int, generated: int) -> None:
        """Add a model's tokens: those that it read, and those that it generated."""
        self.input_tokens += read
        self.output_tokens += generated

    def counts(self) -> dict[str, int]:
        """Return what was used, by name, without what was not."""
        used = {
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "pictures": self.pictures,
            "model_calls": self.calls.total(),
        }
        return {name: count for name, count in used.items() if count}


_ACCOUNT: ContextVar[Account | None] = ContextVar("account", default=None)


def open_account(*, contents: bool = False) -> Account:
    """Return a new account, which is the current one in this task and in those that it starts.

    contents: collect them as well.
    """
    account = Account(contents=Contents() if contents else None)
    _ACCOUNT.set(account)
    return account


def current_account() -> Account:
    """Return the account of the current request; outside of any, one that nobody reads."""
    return _ACCOUNT.get() or Account()
