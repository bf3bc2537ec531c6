"""Checks by what host name a request was sent, and from which site's page.

A server without keys believes whoever reaches it, and a browser on the same machine reaches it for any page that it
shows. A page can post to it blindly (cross-site requests), and, where its name is made to resolve to this machine after
it was loaded, read replies as well (DNS rebinding). Browsers say in Host, Origin and Sec-Fetch-Site what they do.
"""

import ipaddress
import re
from collections.abc import Collection, Iterable
from urllib.parse import urlsplit

from serve.errors import Forbidden, Misdirected, ServeError

HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]*)(?::\d{0,5})?")
READING = {"GET", "HEAD", "OPTIONS"}
"""Methods that change nothing here; what they give a page of another site may not read without CORS."""
OWN_SITE = {"same-origin", "none"}
"""Sec-Fetch-Site of our own page, and of an address that a person typed."""
ANY = "*"


class Sites:
    """Host names that the server has, and sites whose pages may ask it.

    hosts: names beside the machine's own; `*.example.com` is every name under it. None: any name will do. cors: origins
    of other sites whose pages may ask, as in https://app.example.com, or *.
    """

    def __init__(self, hosts: Collection[str] | None, cors: Collection[str] = ()) -> None:
        self.hosts = None if hosts is None else {host.lower() for host in hosts}
        self.origins = {origin.lower().rstrip("/") for origin in cors}

    def wrong_host(self, headers: Iterable[tuple[bytes, bytes]]) -> ServeError | None:
        """Return the error for a request to another name than this server's; None where it is ours."""
        if self.hosts is None:
            return None
        given = _values(headers, b"host")
        if len(given) <= 1 and self._ours(given[0] if given else ""):
            return None
        return Misdirected(
            "This server does not answer to that Host. gateway.hosts names those that it has beside this machine's own."
        )

    def wrong_page(self, method: str, headers: Iterable[tuple[bytes, bytes]]) -> ServeError | None:
        """Return the error for a request from a page of another site; None where it may ask."""
        if method in READING:
            return None
        headers = list(headers)
        origins, sites = _values(headers, b"origin"), _values(headers, b"sec-fetch-site")
        if not origins and set(sites) <= OWN_SITE:
            return None
        if len(origins) == 1 and self._may_ask(origins[0], sites, _values(headers, b"host")):
            return None
        return Forbidden(
            "Pages of other sites may not ask this server. gateway.cors names the origins that may.", code="cross_site"
        )

    def _may_ask(self, origin: str, sites: list[str], hosts: list[str]) -> bool:
        if ANY in self.origins or origin in self.origins or sites == ["same-origin"]:
            return True
        try:
            page = urlsplit(origin)
        except ValueError:
            return False
        if not set(sites) <= OWN_SITE or not page.netloc:
            return False
        return [page.netloc] == hosts or self._named(page.hostname or "")  # behind a proxy Host may be another

    def _ours(self, value: str) -> bool:
        """Return whether a Host header's value names this server. An empty one is no browser's."""
        matched = HOST.fullmatch(value)
        if matched is None:
            return False
        host = matched[1].strip("[]").rstrip(".")
        try:
            return ipaddress.ip_address(host).is_loopback or self._named(host)
        except ValueError:  # a name without a dot is nobody's to register: localhost, or one of /etc/hosts
            return "." not in host or self._named(host)

    def _named(self, host: str) -> bool:
        known = self.hosts or set()
        parents = {"*." + host.split(".", at)[at] for at in range(1, host.count(".") + 1)}
        return ANY in known or host in known or not known.isdisjoint(parents)


def is_loopback(host: str) -> bool:
    """Return whether a server that listens on this address is reached from its own machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _values(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> list[str]:
    return [value.decode("latin-1").strip().lower() for key, value in headers if key == name]
