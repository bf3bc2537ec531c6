"""Counts what a request uses: tokens, pictures, calls of models. Access log, metrics and budgets of keys read it."""

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass
class Account:
    """A request's use so far. key: the name of its API key; "" where the server asks for none.

    input_tokens, output_tokens: of every model that was called, cut and failed ones too. pictures: a
    video is one. model_calls: models that were called, a judge included.
    """

    key: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    pictures: int = 0
    model_calls: int = 0

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
            "model_calls": self.model_calls,
        }
        return {name: count for name, count in used.items() if count}


_ACCOUNT: ContextVar[Account | None] = ContextVar("account", default=None)


def open_account() -> Account:
    """Return a new account, which is the current one in this task and in those that it starts."""
    account = Account()
    _ACCOUNT.set(account)
    return account


def current_account() -> Account:
    """Return the account of the current request; outside of any, one that nobody reads."""
    return _ACCOUNT.get() or Account()
