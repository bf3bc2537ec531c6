"""Declares what an API key may do: scopes, models, tasks, and until when. Its entry in the keys file sets them by name.

`RIGHTS.get()` are those of the current request's key, wherever one is checked.
"""

import datetime
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from serve.accounting import current_account
from serve.errors import Forbidden

Scope = Literal["ask", "scrape", "admin"]


def _split(value: object) -> object:
    return value.split("+") if isinstance(value, str) and value else value


class KeyRights(BaseModel):
    """The rights of a key. None: no restriction."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scopes: Annotated[tuple[Scope, ...], BeforeValidator(_split)] = Field(
        default=("ask", "scrape"),
        min_length=1,
        description="ask: all but the other two. scrape: /metrics. admin: what changes the server, as a new adapter.",
    )
    models: Annotated[tuple[str, ...], BeforeValidator(_split)] | None = Field(
        default=None, min_length=1, description="Models that it may use, as judges too: toy-llava+toy-paligemma."
    )
    tasks: Annotated[tuple[str, ...], BeforeValidator(_split)] | None = Field(
        default=None,
        min_length=1,
        description="Tasks that it may ask: vqa+chat. A conversation with a model is a chat.",
    )
    expires: datetime.date | None = Field(default=None, description="The last day on which it is let in, in UTC.")

    def check_model(self, name: str, param: str) -> None:
        """Raise Forbidden where the key may not use this model, whether it is served or not."""
        if self.models is not None and name not in self.models:
            message = f"The key {current_account().key} may not use the model {name[:200]!r}."
            raise Forbidden(message, param=param, code="model_not_allowed")

    def check_task(self, name: str, param: str) -> None:
        """Raise Forbidden where the key may not ask this task."""
        if self.tasks is not None and name not in self.tasks:
            message = f"The key {current_account().key} may not ask the task {name[:200]!r}."
            raise Forbidden(message, param=param, code="task_not_allowed")

    def allowed_tasks(self, names: Iterable[str]) -> list[str]:
        """Return those of the tasks that the key may ask."""
        return [name for name in names if self.tasks is None or name in self.tasks]

    def expired(self) -> bool:
        """Return whether the key's last day is over."""
        return self.expires is not None and datetime.datetime.now(datetime.UTC).date() > self.expires


ALL_RIGHTS = KeyRights()
RIGHTS: ContextVar[KeyRights] = ContextVar("rights", default=ALL_RIGHTS)
"""The rights of the current request's key; all where the server asks for none (serve/api/authentication.py)."""
