"""Who may come in: keys, what is open without one, and each key's share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from starlette.types import ASGIApp, Receive, Scope, Send

from serve.errors import NotFound, TooMany, Unauthorized
from serve.wire.keys import Keys
from serve.wire.refusals import reply
from serve.wire.shares import Shares

METRICS = "/metrics"
PAGE = ("/", "/docs", "/openapi.json", "/compare")
PAGE_FOLDERS = ("/web/", "/scenes/", "/compare/")

Way = Literal["key", "open"]


@dataclass(frozen=True)
class Access:
    """Everything needs a key but /health, and what is "open" here. Without `keys` everything is open.

    metrics: "closed" hides /metrics, keys or not. page: its own files; what it then asks still needs a key.
    per_minute, at_once: each key's share of requests that ask models (POST).
    """

    keys: Keys | None = None
    metrics: Way | Literal["closed"] = "key"
    page: Way = "key"
    ready: Way = "key"
    per_minute: int | None = None
    at_once: int | None = None

    def open_paths(self) -> frozenset[str]:
        """What needs no key, by its whole path."""
        ways: Mapping[tuple[str, ...], str] = {(METRICS,): self.metrics, ("/ready",): self.ready, PAGE: self.page}
        return frozenset({"/health", *(path for paths, way in ways.items() if way == "open" for path in paths)})


class Guard:
    """Denies by default, on the path that is routed (`scope["path"]`): a Host header or a URL made of one decides
    nothing (CVE-2026-48710)."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app = app
        self.access = access
        self.keys = access.keys
        self.open = access.open_paths()
        self.folders = PAGE_FOLDERS if access.page == "open" else ()
        names = access.keys.names if access.keys is not None else []
        self.shares = Shares(names, access.per_minute, access.at_once)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path == METRICS and self.access.metrics == "closed":
            await reply(NotFound(f"There is nothing at {path}."))(scope, receive, send)
        elif self.keys is None or path in self.open or path.startswith(self.folders):
            await self.app(scope, receive, send)
        else:
            await self._let_in(self.keys.owner(scope["headers"]), scope, receive, send)

    async def _let_in(self, name: str | None, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})["key"] = name
        if name is None:
            unknown = Unauthorized("A valid API key is needed, as Authorization: Bearer KEY.")
            await reply(unknown, {"www-authenticate": "Bearer"})(scope, receive, send)
        elif scope.get("method") != "POST":  # only these ask models
            await self.app(scope, receive, send)
        elif (wait_s := self.shares.take(name)) is not None:
            over = TooMany(f"The key {name} has no requests left for now; Retry-After says when to try again.")
            await reply(over, {"retry-after": str(wait_s)})(scope, receive, send)
        else:
            try:
                await self.app(scope, receive, send)
            finally:
                self.shares.give_back(name)
