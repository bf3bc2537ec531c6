"""Which URLs and addresses may be fetched from. Pure: no name is resolved and nothing is dialled here."""

import re
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import NamedTuple

Address = IPv4Address | IPv6Address

MAX_URL = 8192
MAX_HOST = 253

# The only parser of URLs: what is dialled is what matched here. Visible ASCII without backslashes; a host of letters,
# digits and hyphens or an address in brackets, so that no user name, no escape and no second spelling gets through.
_URL = re.compile(
    r"(?P<scheme>https?)://(?:\[(?P<six>[0-9a-f:.]+)\]|(?P<host>[a-z0-9._-]+))(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<target>[/?](?:(?![\\#])[!-~])*)?(?:\#(?:(?!\\)[!-~])*)?",
    re.IGNORECASE,
)
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")

# What `is_global` lets through (multicast is asked about beside it), or did in some Python since 3.11.
_REFUSED = [
    ip_network(net)
    for net in [
        *["0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.88.99.0/24", "198.18.0.0/15", "240.0.0.0/4"],
        *["168.63.129.16/32", "100.100.100.200/32", "169.254.0.0/16"],  # where clouds tell machines their secrets
        *["2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"],  # Teredo and 6to4 carry an IPv4 address inside
    ]
]
_UNICAST = ip_network("2000::/3")  # all of IPv6 that is routed: no tunnel, mapped, local or metadata address is in it
_MAPPED = ip_network("::ffff:0:0/96")
_NAT64 = ip_network("64:ff9b::/96")  # how a network without IPv4 reaches every IPv4 address
_ISATAP = (0x00005EFE, 0x02005EFE)  # the upper half of an interface's number; the lower half is an IPv4 address


class Place(NamedTuple):
    """Where a URL leads. host: lower case, an IPv6 address without its brackets. target: path and query."""

    scheme: str
    host: str
    port: int
    target: str

    def authority(self) -> str:
        """As a Host header has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _port(self.scheme) else f"{host}:{self.port}"

    def url(self) -> str:
        return f"{self.scheme}://{self.authority()}{self.target}"


def parse(url: str) -> Place | None:
    """Where an http(s) URL leads; None for one that is malformed or that another parser might read differently."""
    match = _URL.fullmatch(url) if len(url) <= MAX_URL else None
    if match is None:
        return None
    scheme = match["scheme"].lower()
    host = _six(match["six"]) if match["six"] else _name(match["host"].lower())
    port = int(match["port"]) if match["port"] else _port(scheme)
    target = match["target"] or "/"
    if host is None or not 0 < port < 65536:
        return None
    return Place(scheme, host, port, target if target.startswith("/") else f"/{target}")


def literal(host: str) -> Address | None:
    """The address that a host is; None for a name."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def public(address: Address) -> bool:
    """Whether anybody on the internet may reach it: not us alone, our network, our cloud, or a tunnel to them."""
    if isinstance(address, IPv6Address):
        if address in _MAPPED or address in _NAT64:
            return public(IPv4Address(int(address) & 0xFFFFFFFF))
        if address not in _UNICAST or int(address) >> 32 & 0xFFFFFFFF in _ISATAP:
            return False
    return address.is_global and not address.is_multicast and not any(address in net for net in _REFUSED)


def _port(scheme: str) -> int:
    return 443 if scheme == "https" else 80


def _six(text: str) -> str | None:
    address = literal(text)
    return str(address) if isinstance(address, IPv6Address) else None


def _name(host: str) -> str | None:
    """A name, or an IPv4 address as four plain numbers. One that ends in a number is read as an address by some
    (127.1, 2130706433, 0x7f000001, 0177.0.0.1), and so is refused where it is not exactly one."""
    labels = host.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        return host if isinstance(literal(host), IPv4Address) else None
    return host if len(host) <= MAX_HOST and all(map(_LABEL.fullmatch, labels)) else None
