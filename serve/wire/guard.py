"""Who may come in: keys, what is open without one, and each key's share."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from starlette.types import ASGIApp, Receive, Scope, Send

from serve.errors import Forbidden, NotFound, ServeError, TooMany, Unauthorized
from serve.request_id import CACHE_SALT
from serve.wire.keys import Keys
from serve.wire.refusals import reply
from serve.wire.shares import Shares
from serve.wire.sites import Sites

HEALTH, METRICS = "/health", "/metrics"
PAGE = ("/", "/docs", "/openapi.json", "/compare")
PAGE_FOLDERS = ("/web/", "/scenes/", "/compare/")

Way = Literal["key", "open"]


@dataclass(frozen=True)
class Access:
    """Everything needs a key but /health, and what is "open" here. Without `keys` everything is open.

    metrics: "closed" hides /metrics, keys or not. page: its own files; what it then asks still needs a key.
    per_minute, at_once: each key's share of requests that ask models (POST). hosts: names by which the server may be
    asked, beside this machine's own; None is any. salted: engines share nothing of one key with another.
    """

    keys: Keys | None = None
    metrics: Way | Literal["closed"] = "key"
    page: Way = "key"
    ready: Way = "key"
    per_minute: int | None = None
    at_once: int | None = None
    hosts: frozenset[str] | None = None
    salted: bool = False

    def open_paths(self) -> frozenset[str]:
        """What needs no key, by its whole path."""
        ways: Mapping[tuple[str, ...], str] = {(METRICS,): self.metrics, ("/ready",): self.ready, PAGE: self.page}
        return frozenset({HEALTH, *(path for paths, way in ways.items() if way == "open" for path in paths)})


class Guard:
    """Denies by default, on the path that is routed (`scope["path"]`): a Host header or a URL made of one decides
    nothing (CVE-2026-48710).

    Without keys it also refuses what pages of other sites ask; a key says enough, since browsers send none by
    themselves. origins: whose pages may ask all the same. shares: counted on, where there are some from before.
    """

    def __init__(
        self, app: ASGIApp, access: Access, origins: Collection[str] = (), shares: Shares | None = None
    ) -> None:
        self.app = app
        self.access = access
        self.keys = access.keys
        self.open = access.open_paths()
        self.folders = PAGE_FOLDERS if access.page == "open" else ()
        self.sites = Sites(access.hosts, origins)
        self.shares = shares or Shares()
        self.shares.limit(access.per_minute, access.at_once)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if (wrong := self._wrong(path, scope)) is not None:
            await reply(wrong)(scope, receive, send)
        elif path == METRICS and self.access.metrics == "closed":
            await reply(NotFound(f"There is nothing at {path}."))(scope, receive, send)
        elif self.keys is None or path in self.open or path.startswith(self.folders):
            await self.app(scope, receive, send)
        else:
            name = self.keys.owner(scope["headers"])
            scope.setdefault("state", {})["key"] = name
            if self.access.salted and name is not None:
                CACHE_SALT.set(name)
            if name in self.keys.only_metrics and path != METRICS:
                await reply(Forbidden(f"The key {name} may read {METRICS} and nothing else."))(scope, receive, send)
            else:
                await self._let_in(name, scope, receive, send)

    def _wrong(self, path: str, scope: Scope) -> ServeError | None:
        """The refusal of a request for another host, or from a page of another site."""
        wrong = None if path == HEALTH else self.sites.wrong_host(scope["headers"])
        if wrong is None and self.keys is None:
            wrong = self.sites.wrong_page(scope.get("method", ""), scope["headers"])
        return wrong

    async def _let_in(self, name: str | None, scope: Scope, receive: Receive, send: Send) -> None:
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
