"""Where a replica listens for gateways."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Address:
    """token: what the replica wants to hear first."""

    host: str
    port: int
    token: bytes
