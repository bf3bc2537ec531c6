"""Authenticates requests by API key, applies their key's limits, and checks host and origin."""

import ipaddress
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from serve.accounting import current_account
from serve.api.error_responses import error_response
from serve.api.keys import Keys
from serve.api.rate_limiter import RateLimiter
from serve.errors import Forbidden, Misdirected, NotFound, ServeError, Unauthorized
from serve.limits import LIMITS, Limits
from serve.rights import ALL_RIGHTS, RIGHTS, KeyRights
from serve.tasks import ADDRESSES
from serve.tracing import CACHE_SALT

HEALTH, METRICS = "/health", "/metrics"
ADMIN = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")
"""Paths that change the server, by vLLM's names."""
PAGE = ("/", "/docs", "/openapi.json", "/compare", "/arena", "/report", "/evaluations")
LABEL_STUDIO = "/label-studio/"
"""The paths that take the key as HTTP Basic's password too: Label Studio sends nothing else."""
PAGE_FOLDERS = ("/web/", "/scenes/", "/compare/", *(f"/{name}/" for name in ADDRESSES))
BEARER = {"www-authenticate": "Bearer"}
RESULT_FOLDERS = ("/r/", "/v1/results/", "/web/")
"""Shared results, which need their address and no key, and the files of their page."""
HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]*)(?::\d{0,5})?")
SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
"""Methods that change nothing here. A page of another site cannot read their responses without CORS."""
OWN_FETCH_SITES = {"same-origin", "none"}
"""Values of Sec-Fetch-Site for our own page, and for a URL that a person typed."""
ANY = "*"

ON_BEHALF = "on_behalf"
"""The state of a request that the server itself makes for a key, as a line of a batch: the key's name. No client can
set it."""

Requires = Literal["key", "open"]


@dataclass(frozen=True)
class Access:
    """Access rules, named as in a config's `gateway`.

    Every path needs a key, except /health and what is "open" here. Without `keys` everything is open.

    metrics: "closed" hides /metrics, with keys or without. page: the page's own files; its API requests still need a
    key. results: whether results are shared, which need no key.
    hosts: host names of the server, besides this machine's own; None for any.
    salt_caches: engine caches are not shared between keys.
    """

    keys: Keys | None = None
    metrics: Requires | Literal["closed"] = "key"
    page: Requires = "key"
    ready: Requires = "key"
    results: bool = False
    hosts: frozenset[str] | None = None
    salt_caches: bool = False

    def open_paths(self) -> frozenset[str]:
        """Return the paths that need no key."""
        required: Mapping[tuple[str, ...], str] = {(METRICS,): self.metrics, ("/ready",): self.ready, PAGE: self.page}
        open_paths = [path for paths, needs in required.items() if needs == "open" for path in paths]
        return frozenset({HEALTH, *open_paths})


class OriginCheck:
    """Checks the Host, Origin and Sec-Fetch-Site headers against cross-site requests and DNS rebinding.

    A server without keys trusts everyone who can reach it, and any page in a browser on the same machine can. Such a
    page can send requests without reading the responses (cross-site requests), and read them too where its host name is
    made to resolve to this machine after it was loaded (DNS rebinding).

    hosts: names besides the machine's own; `*.example.com` matches every name below it. None: any name. cors: origins
    of other sites that are allowed, such as https://app.example.com, or *.
    """

    def __init__(self, hosts: Collection[str] | None, cors: Collection[str] = ()) -> None:
        self.hosts = None if hosts is None else {host.lower() for host in hosts}
        self.origins = {origin.lower().rstrip("/") for origin in cors}

    def host_error(self, headers: Iterable[tuple[bytes, bytes]]) -> ServeError | None:
        """Return the error for a request to another host name; None where the host is ours."""
        if self.hosts is None:
            return None
        given = _values(headers, b"host")
        if len(given) <= 1 and self._is_own(given[0] if given else ""):
            return None
        return Misdirected(
            "This server does not answer to that Host. gateway.hosts names those that it has beside this machine's own."
        )

    def origin_error(self, method: str, headers: Iterable[tuple[bytes, bytes]]) -> ServeError | None:
        """Return the error for a request from a page of another site; None where it is allowed."""
        if method in SAFE_METHODS:
            return None
        headers = list(headers)
        origins, sites = _values(headers, b"origin"), _values(headers, b"sec-fetch-site")
        if not origins and set(sites) <= OWN_FETCH_SITES:
            return None
        if len(origins) == 1 and self._is_allowed(origins[0], sites, _values(headers, b"host")):
            return None
        return Forbidden(
            "Pages of other sites may not ask this server. gateway.cors names the origins that may.", code="cross_site"
        )

    def _is_allowed(self, origin: str, sites: list[str], hosts: list[str]) -> bool:
        if ANY in self.origins or origin in self.origins or sites == ["same-origin"]:
            return True
        try:
            page = urlsplit(origin)
        except ValueError:
            return False
        if not set(sites) <= OWN_FETCH_SITES or not page.netloc:
            return False
        return [page.netloc] == hosts or self._is_named(page.hostname or "")  # behind a proxy Host may be another

    def _is_own(self, value: str) -> bool:
        """Return whether a Host header names this server. Browsers never send an empty one."""
        matched = HOST.fullmatch(value)
        if matched is None:
            return False
        host = matched[1].strip("[]").rstrip(".")
        try:
            return ipaddress.ip_address(host).is_loopback or self._is_named(host)
        except ValueError:  # a name without a dot cannot be registered: localhost, or one of /etc/hosts
            return "." not in host or self._is_named(host)

    def _is_named(self, host: str) -> bool:
        known = self.hosts or set()
        parents = {"*." + host.split(".", at)[at] for at in range(1, host.count(".") + 1)}
        return ANY in known or host in known or not known.isdisjoint(parents)


def is_loopback(host: str) -> bool:
    """Return whether a server that listens on this address is reachable from its own machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _values(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> list[str]:
    return [value.decode("latin-1").strip().lower() for key, value in headers if key == name]


class Authentication:
    """Middleware that denies by default, by the path that is routed (`scope["path"]`).

    The Host header has no influence on that (CVE-2026-48710). Without keys, requests from pages of other sites are
    refused; with keys there is no need, since browsers do not send a key on their own. cors: origins whose pages are
    allowed. limits: of requests, where their key's entry sets none. rate_limiter: one that outlives this app, to keep
    its counts.
    """

    def __init__(
        self,
        app: ASGIApp,
        access: Access,
        limits: Limits,
        cors: Collection[str] = (),
        rate_limiter: RateLimiter | None = None,
    ) -> None:
        self.app = app
        self.access = access
        self.keys = access.keys
        self.open = access.open_paths()
        self.folders = (*PAGE_FOLDERS * (access.page == "open"), *RESULT_FOLDERS * access.results)
        self.origin_check = OriginCheck(access.hosts, cors)
        self.rate_limiter = rate_limiter or RateLimiter()
        self.limits = limits
        own = {} if access.keys is None else access.keys.limits
        self.limits_by_key = {name: limits.model_copy(update=values) for name, values in own.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        LIMITS.set(self.limits)
        RIGHTS.set(ALL_RIGHTS)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if (error := self._site_error(path, scope)) is not None:
            await error_response(error)(scope, receive, send)
        elif path == METRICS and self.access.metrics == "closed":
            await error_response(NotFound(f"There is nothing at {path}."))(scope, receive, send)
        elif self.keys is None or path in self.open or path.startswith(self.folders):
            if self.keys is not None and scope.get("method") == "DELETE":  # a shared result, by its key or token
                owner = self.keys.owner(scope["headers"])
                allowed = owner is not None and _rights_error(owner, self.keys.rights[owner], path) is None
                scope.setdefault("state", {})["key"] = owner if allowed else None
            await self.app(scope, receive, send)
        else:
            name = self._owner(path, scope)
            scope.setdefault("state", {})["key"] = name
            if name is not None:
                rights = self.keys.rights[name]
                current_account().key = name
                LIMITS.set(self.limits_by_key[name])
                RIGHTS.set(rights)
                if self.access.salt_caches:
                    CACHE_SALT.set(name)
                error = _rights_error(name, rights, path)
            if error is not None:
                await error_response(error, BEARER if error.status == 401 else None)(scope, receive, send)
            else:
                await self._let_in(name, scope, receive, send)

    def _owner(self, path: str, scope: Scope) -> str | None:
        """Return the name of the request's key; None where it has none that is known."""
        assert self.keys is not None
        behalf: str | None = scope.get("state", {}).get(ON_BEHALF)
        if behalf is not None:
            return behalf if behalf in self.limits_by_key else None  # its key may have been removed
        return self.keys.owner(scope["headers"], basic=path.startswith(LABEL_STUDIO))

    def _site_error(self, path: str, scope: Scope) -> ServeError | None:
        """Return the error for a request to another host, or from a page of another site."""
        error = None if path == HEALTH else self.origin_check.host_error(scope["headers"])
        if error is None and self.keys is None:
            error = self.origin_check.origin_error(scope.get("method", ""), scope["headers"])
        return error

    async def _let_in(self, name: str | None, scope: Scope, receive: Receive, send: Send) -> None:
        if name is None:
            unknown = Unauthorized("A valid API key is needed, as Authorization: Bearer KEY.")
            await error_response(unknown, BEARER)(scope, receive, send)
        elif scope.get("method") != "POST":  # only POST requests call models
            await self.app(scope, receive, send)
        else:
            await self._limited(name, scope, receive, send)

    async def _limited(self, name: str, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.rate_limiter.start(name, LIMITS.get())
        except ServeError as error:
            await error_response(error)(scope, receive, send)
            return
        account = current_account()
        try:
            await self.app(scope, receive, send)
        finally:
            self.rate_limiter.finish(name, account.input_tokens + account.output_tokens)


def _rights_error(name: str, rights: KeyRights, path: str) -> ServeError | None:
    """Return the error for a path that the key may not use, or not any more."""
    if rights.expired():
        return Unauthorized(f"The key {name} expired on {rights.expires}.")
    needed = "scrape" if path == METRICS else "admin" if path in ADMIN else "ask"
    if needed in rights.scopes:
        return None
    return Forbidden(f"The key {name} has the scope {', '.join(rights.scopes)}; this path needs {needed}.")
