"""Addresses of replicas, as they give them to gateways."""

from dataclasses import dataclass

REFRESH_S = 3.0
"""Seconds between a gateway's searches for further replicas, while it has some."""


@dataclass(frozen=True)
class Address:
    """A replica's port. token: the secret that a connection to it must send first."""

    host: str
    port: int
    token: bytes
