"""Declares every limit on requests: name, default, bounds and description. A config's `gateway` sets them by name.

`LIMITS.get()` are those of the current request, wherever one is checked.
"""

from contextvars import ContextVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from serve.media.outline import MAX_MEGAPIXELS

MAX_LABELS = 256
"""Labels (phrases) of one request, whatever is configured: requests, and files with labels, are read up to here."""

MAX_DEADLINE_S = 600
"""Longest `deadline_s` of a request, whatever is configured."""

MAX_CHOICES = 8
"""Most choices (`n`) of one chat, whatever is configured."""

EXCEEDED = "limit_exceeded"
"""The code of an error about a number above a limit."""

MAX_HEAD = 64 * 1024
"""Largest request line and headers, in bytes."""


class RateLimits(BaseModel):
    """Limits on all requests of a key together, for which keys must be configured. None: no limit.

    They count requests that ask models (POST).
    """

    model_config = ConfigDict(extra="forbid")

    requests_per_minute: int | None = Field(
        default=None, ge=1, description="Requests of each key, of all gateways together; as many may start at once."
    )
    pictures_per_minute: int | None = Field(
        default=None,
        ge=1,
        description="Pictures, and videos, of each key, of all gateways together; as many may come at once.",
    )
    tokens_per_day: int | None = Field(
        default=None,
        ge=1,
        description="Tokens of each key, read and generated, of all gateways together, on a day of UTC. What runs when "
        "they are used up is finished. `usage_file` keeps them over a restart.",
    )
    tokens_per_month: int | None = Field(default=None, ge=1, description="The same in a month of UTC.")
    requests_at_once: int | None = Field(
        default=None, ge=1, description="Requests of each key that run at the same time, in each gateway."
    )


class KeyLimits(RateLimits):
    """Limits that are checked once the key is known. Its entry may set its own: `name:sha256:HEX:LIMIT=N`."""

    max_image_megapixels: float = Field(
        default=MAX_MEGAPIXELS,
        gt=0,
        le=MAX_MEGAPIXELS,
        description=f"Largest image that is decoded; {MAX_MEGAPIXELS} is also the most that can be set.",
    )
    max_labels: int = Field(
        default=32,
        ge=1,
        le=MAX_LABELS,
        description="Largest number of labels (phrases) that a request may name; of several that mean the same, one "
        f"counts. {MAX_LABELS} is also the most that can be set. Some models are asked once for each label.",
    )
    max_models: int | None = Field(
        default=None,
        ge=1,
        description="Largest number of models that a request may ask, its judge not counted; one that names none asks "
        "all that can do its task.",
    )
    max_deadline_s: float = Field(
        default=MAX_DEADLINE_S,
        gt=0,
        le=MAX_DEADLINE_S,
        description="Longest `deadline_s` that a request may ask for, in seconds; one that asks for none has no more. "
        f"{MAX_DEADLINE_S} is also the most that can be set.",
    )
    max_choices: int = Field(
        default=MAX_CHOICES,
        ge=1,
        le=MAX_CHOICES,
        description=f"Largest number of choices (`n`) that a chat may ask of a model. {MAX_CHOICES} is also the most "
        "that can be set.",
    )
    max_values: int = Field(
        default=150_000,
        ge=1,
        description="Largest number of values in a JSON body, counted by commas and opening brackets. An ordinary "
        "request has a few thousand; while a body is parsed, other requests wait.",
    )


class Limits(KeyLimits):
    """All limits. Those declared here are checked before the key is known."""

    max_body_mb: float = Field(
        default=28, gt=0, description="Largest request body, in MiB; an image of 20 MB fits in base64."
    )
    body_timeout_s: float = Field(default=30, gt=0, description="Seconds for a request's body to arrive.")
    head_timeout_s: float = Field(default=10, gt=0, description="Seconds for its headers to arrive, with `listen`.")
    write_timeout_s: float = Field(
        default=30, gt=0, description="Seconds for a client to read what was written, with `listen`."
    )

    @property
    def max_body(self) -> int:
        """Largest body, in bytes."""
        return int(self.max_body_mb * 2**20)


DEFAULT_LIMITS = Limits()
LIMITS: ContextVar[Limits] = ContextVar("limits", default=DEFAULT_LIMITS)
"""The limits of the current request: the server's, with what its key's entry sets (serve/api/authentication.py)."""


def within(limit: str) -> AfterValidator:
    """Make a validator for a field's annotation: it refuses a number above the current request's limit of this name.

    What a client leaves out is not validated: a default above the limit is lowered where it is used.
    """

    if limit not in Limits.model_fields:
        raise ValueError(f"there is no limit {limit}")

    def check(value: float | None) -> float | None:
        most = getattr(LIMITS.get(), limit)
        if value is not None and most is not None and value > most:
            about = {"value": f"{value:.15g}", "limit": limit, "most": f"{most:.15g}"}
            raise PydanticCustomError(EXCEEDED, "{value} is above {limit}: ask for at most {most}", about)
        return value

    return AfterValidator(check)
