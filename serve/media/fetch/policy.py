"""A policy of the URLs that images may be fetched from: a config's `gateway.images`."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from serve.media.fetch.address import ParsedUrl

Host = Annotated[str, Field(pattern=r"^(\*\.)?[a-z0-9._-]+$|^[0-9a-f:.]+$", max_length=255)]
"""A name or an address in lower case, or *.name for everything under it."""


class Policy(BaseModel):
    """Rules for URLs. Addresses that are not public are never fetched from, whatever is allowed here."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schemes: list[Literal["https", "http"]] = Field(
        default=["https"], description="Allowed schemes; with an empty list nothing is fetched."
    )
    ports: list[Annotated[int, Field(ge=1, le=65535)]] = [443, 80]
    allow: list[Host] = Field(default=[], description="Allowed hosts; any when empty.")
    deny: list[Host] = Field(default=[], description="Refused hosts, also where `allow` has them.")
    timeout_s: float = Field(default=5.0, gt=0, le=60, description="Seconds for a fetch, including redirects.")

    def permits(self, url: ParsedUrl) -> bool:
        """Return whether the rules allow a URL. Its addresses are checked later, when they are resolved."""
        return (
            url.scheme in self.schemes
            and url.port in self.ports
            and (not self.allow or _matches(url.host, self.allow))
            and not _matches(url.host, self.deny)
        )


def _matches(host: str, entries: list[str]) -> bool:
    return any(host.endswith(entry[1:]) if entry.startswith("*.") else host == entry for entry in entries)
