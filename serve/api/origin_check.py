"""Checks the Host, Origin and Sec-Fetch-Site headers against cross-site requests and DNS rebinding.

A server without keys trusts everyone who can reach it, and any page in a browser on the same machine can. Such a page
can send requests without reading the responses (cross-site requests), and read them too where its host name is made to
resolve to this machine after it was loaded (DNS rebinding).
"""

import ipaddress
import re
from collections.abc import Collection, Iterable
from urllib.parse import urlsplit

from serve.errors import Forbidden, Misdirected, ServeError

HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]*)(?::\d{0,5})?")
SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
"""Methods that change nothing here. A page of another site cannot read their responses without CORS."""
OWN_FETCH_SITES = {"same-origin", "none"}
"""Values of Sec-Fetch-Site for our own page, and for a URL that a person typed."""
ANY = "*"


class OriginCheck:
    """The host names of the server, and the origins whose pages may call it.

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
