"""A policy of the URLs that images may be fetched from: a config's `gateway.images`."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from serve.media.fetch.address import Address, ParsedUrl, canonical, literal, parse, unmapped


def _entry(host: str) -> str:
    """Return an entry as hosts are compared. Raises ValueError where no URL can have such a host."""
    wildcard = "*." if host.startswith("*.") else ""
    name = host.removeprefix("*.")
    url = parse(f"https://[{name}]" if ":" in name else f"https://{name}")
    if url is None or (wildcard and literal(url.host)):
        raise ValueError(f"{host} is neither a host's name nor an address: write it as cdn.example.com or 192.0.2.1")
    return wildcard + canonical(url.host)


Host = Annotated[str, Field(pattern=r"^(\*\.)?[a-z0-9._-]+$|^[0-9a-f:.]+$", max_length=255), AfterValidator(_entry)]
"""A name or an address in lower case, or *.name for everything under it."""


class Policy(BaseModel):
    """Rules for URLs. Addresses that are not public are never fetched from, whatever is allowed here.

    An address in `allow` or `deny` is meant in all its spellings. In `deny` it also refuses every name that leads to
    it. In `allow` it is only an address: a name that leads there is not allowed by it, as anyone can have such a name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schemes: list[Literal["https", "http"]] = Field(
        default=["https"], description="Allowed schemes; with an empty list nothing is fetched."
    )
    ports: list[Annotated[int, Field(ge=1, le=65535)]] = [443, 80]
    allow: list[Host] = Field(default=[], description="Allowed hosts; any when empty.")
    deny: list[Host] = Field(
        default=[],
        description="Refused hosts, also where `allow` has them; of an address also all names that lead to it.",
    )
    timeout_s: float = Field(default=5.0, gt=0, le=60, description="Seconds for a fetch, including redirects.")

    def permits(self, url: ParsedUrl) -> bool:
        """Return whether the rules allow a URL. Its addresses are checked later, when they are resolved."""
        host = canonical(url.host)
        return (
            url.scheme in self.schemes
            and url.port in self.ports
            and (not self.allow or _matches(host, self.allow))
            and not _matches(host, self.deny)
        )

    def permits_address(self, address: Address) -> bool:
        """Return whether the rules allow an address that a URL's host resolved to."""
        return str(unmapped(address)) not in self.deny


def _matches(host: str, entries: list[str]) -> bool:
    return any(host.endswith(entry[1:]) if entry.startswith("*.") else host == entry for entry in entries)
