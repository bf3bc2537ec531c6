"""Where a replica listens for gateways."""

from dataclasses import dataclass

LOOK_S = 3.0
"""How often a gateway that has replicas looks for others."""


@dataclass(frozen=True)
class Address:
    """token: what the replica wants to hear first."""

    host: str
    port: int
    token: bytes
