"""Which pictures may be fetched: a config's `gateway.images`."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from serve.media.fetch.address import Place

Host = Annotated[str, Field(pattern=r"^(\*\.)?[a-z0-9._-]+$|^[0-9a-f:.]+$", max_length=255)]
"""A name or an address in lower case, or *.name for everything under it."""


class Policy(BaseModel):
    """Never to an address that is not public, whatever is allowed here."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schemes: list[Literal["https", "http"]] = Field(default=["https"], description="None: nothing is fetched.")
    ports: list[Annotated[int, Field(ge=1, le=65535)]] = [443, 80]
    allow: list[Host] = Field(default=[], description="The only hosts; any when empty.")
    deny: list[Host] = Field(default=[], description="Not these, allowed or not.")
    timeout_s: float = Field(default=5.0, gt=0, le=60, description="For the whole of it, redirects included.")

    def permits(self, place: Place) -> bool:
        """Whether a URL may be followed so far as its text tells."""
        return (
            place.scheme in self.schemes
            and place.port in self.ports
            and (not self.allow or _among(place.host, self.allow))
            and not _among(place.host, self.deny)
        )


def _among(host: str, entries: list[str]) -> bool:
    return any(host.endswith(entry[1:]) if entry.startswith("*.") else host == entry for entry in entries)
