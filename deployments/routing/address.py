"""The address of a replica, which a gateway learns through Ray."""

from dataclasses import dataclass

REFRESH_S = 3.0
"""Seconds between a gateway's searches for more replicas, while it has at least one."""


@dataclass(frozen=True)
class Address:
    """A replica's port. token: the secret that a connection to it must send first."""

    host: str
    port: int
    token: bytes
