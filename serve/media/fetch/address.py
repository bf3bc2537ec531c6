"""Parse URLs and classify addresses as public or not. No name is resolved and no connection is opened here."""

import re
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import NamedTuple

Address = IPv4Address | IPv6Address

MAX_URL = 8192
MAX_HOST = 253

# The only parser of URLs: the fetcher connects to what matched here. Visible ASCII without backslashes; a host of
# letters, digits and hyphens or an address in brackets, so that user names, escapes and other spellings are rejected.
_URL = re.compile(
    r"(?P<scheme>https?)://(?:\[(?P<six>[0-9a-f:.]+)\]|(?P<host>[a-z0-9._-]+))(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<target>[/?](?:(?![\\#])[!-~])*)?(?:\#(?:(?!\\)[!-~])*)?",
    re.IGNORECASE,
)
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")

# Networks that `is_global` accepts, or accepted in some Python since 3.11. Multicast is checked separately.
_REFUSED = [
    ip_network(net)
    for net in [
        *["0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.88.99.0/24", "198.18.0.0/15", "240.0.0.0/4"],
        *["168.63.129.16/32", "100.100.100.200/32", "169.254.0.0/16"],  # metadata services of clouds
        *["2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"],  # Teredo and 6to4 carry an IPv4 address inside
    ]
]
_UNICAST = ip_network("2000::/3")  # all routed IPv6: without tunnels, mapped, local and metadata addresses
_MAPPED = ip_network("::ffff:0:0/96")
_NAT64 = ip_network("64:ff9b::/96")  # by which networks without IPv4 reach IPv4 addresses
_ISATAP = (0x00005EFE, 0x02005EFE)  # the upper half of an interface's number; the lower half is an IPv4 address


class ParsedUrl(NamedTuple):
    """A parsed http(s) URL. host: lower case, an IPv6 address without its brackets. target: path and query."""

    scheme: str
    host: str
    port: int
    target: str

    def authority(self) -> str:
        """Return host and port as in a Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _port(self.scheme) else f"{host}:{self.port}"

    def url(self) -> str:
        return f"{self.scheme}://{self.authority()}{self.target}"


def parse(url: str) -> ParsedUrl | None:
    """Parse an http(s) URL; None where it is malformed or other parsers might read it differently."""
    match = _URL.fullmatch(url) if len(url) <= MAX_URL else None
    if match is None:
        return None
    scheme = match["scheme"].lower()
    host = _ipv6(match["six"]) if match["six"] else _host(match["host"].lower())
    port = int(match["port"]) if match["port"] else _port(scheme)
    target = match["target"] or "/"
    if host is None or not 0 < port < 65536:
        return None
    return ParsedUrl(scheme, host, port, target if target.startswith("/") else f"/{target}")


def literal(host: str) -> Address | None:
    """Return the IP address that a host is written as; None for a name."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def unmapped(address: Address) -> Address:
    """Return the IPv4 address that ::ffff:1.1.1.1 or 64:ff9b::1.1.1.1 leads to; any other address as it is."""
    if isinstance(address, IPv6Address) and (address in _MAPPED or address in _NAT64):
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def canonical(host: str) -> str:
    """Return a host in the spelling by which hosts are compared: the same for every spelling of an address."""
    address = literal(host)
    return host if address is None else str(unmapped(address))


def public(address: Address) -> bool:
    """Return whether an address is on the public internet: not local, private, a cloud's, or a tunnel to such."""
    address = unmapped(address)
    if isinstance(address, IPv6Address) and (address not in _UNICAST or int(address) >> 32 & 0xFFFFFFFF in _ISATAP):
        return False
    return address.is_global and not address.is_multicast and not any(address in net for net in _REFUSED)


def _port(scheme: str) -> int:
    return 443 if scheme == "https" else 80


def _ipv6(text: str) -> str | None:
    address = literal(text)
    return str(address) if isinstance(address, IPv6Address) else None


def _host(host: str) -> str | None:
    """Return a valid host name or dotted IPv4 address; None for anything else.

    Some parsers read any name that ends in a number as an address (127.1, 2130706433, 0x7f000001, 0177.0.0.1), so such
    a name is rejected unless it is four plain numbers.
    """
    labels = host.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        return host if isinstance(literal(host), IPv4Address) else None
    return host if len(host) <= MAX_HOST and all(map(_LABEL.fullmatch, labels)) else None
