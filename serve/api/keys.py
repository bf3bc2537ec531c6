"""API keys, stored as SHA-256 digests. A key itself is in memory only when it is made or presented."""

import base64
import contextlib
import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import ValidationError

from serve.limits import KeyLimits

NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
HASHED = re.compile(r"sha256:([0-9a-f]{64})((?::[^:]+)*)")
ONLY_METRICS = "metrics"
KEY = re.compile(r"[\x21-\x2b\x2d-\x7e]+")  # fits in a header and in a list: ASCII, no blank, no comma


class Keys:
    """Named keys. Raises ValueError naming an invalid entry, without its key.

    entries: `name:key`, `name:sha256:HEX`, `name:sha256:HEX:metrics` for a key that can only read /metrics, or
    `name:sha256:HEX:LIMIT=N:...` for one with limits of its own. may_be_none: accept an empty list, with which every
    request is refused. limits: values of KeyLimits' fields that an entry sets, by the key's name.
    """

    def __init__(self, entries: Iterable[str], *, may_be_none: bool = False) -> None:
        self._digests: dict[str, bytes] = {}
        self.only_metrics: set[str] = set()
        self.limits: dict[str, dict[str, Any]] = {}
        for at, entry in enumerate(entries, start=1):
            name, colon, key = entry.strip().partition(":")
            if not NAME.fullmatch(name) or not colon:
                raise ValueError(
                    f"API key {at} is not of the form name:key, name:sha256:HEX or name:sha256:HEX:metrics."
                )
            if name in self._digests:
                raise ValueError(f"There are two API keys of the name {name}.")
            hashed = HASHED.fullmatch(key)
            if hashed is None and (key.startswith("sha256:") or not KEY.fullmatch(key)):
                raise ValueError(
                    f"The API key of {name} must be ASCII without blanks or commas, or sha256:, 64 digits and perhaps "
                    ":metrics or :LIMIT=N."
                )
            suffixes = hashed[2].split(":")[1:] if hashed else []
            if suffixes == [ONLY_METRICS]:
                self.only_metrics.add(name)
                suffixes = []
            self.limits[name] = _limits(name, suffixes)
            self._digests[name] = bytes.fromhex(hashed[1]) if hashed else _digest(key.encode())
        if not self._digests and not may_be_none:
            raise ValueError("API keys are asked for, but there is none.")

    @property
    def names(self) -> list[str]:
        return list(self._digests)

    def owner(self, headers: Iterable[tuple[bytes, bytes]], *, basic: bool = False) -> str | None:
        """Return the name of the key in `Authorization: Bearer KEY`; None for no key, an unknown one, or two at once.

        basic: take HTTP's Basic too, with the key as password. Every digest is compared in constant time, so that the
        time reveals nothing.
        """
        given = [value for name, value in headers if name == b"authorization"]
        scheme, _, key = (given[0] if len(given) == 1 else b"").partition(b" ")
        if basic and scheme.lower() == b"basic":
            with contextlib.suppress(ValueError):
                scheme, key = b"bearer", base64.b64decode(key.strip(), validate=True).partition(b":")[2]
        presented, owner = _digest(key.strip()), None
        for name, digest in self._digests.items():
            if hmac.compare_digest(presented, digest):
                owner = name
        return owner if scheme.lower() == b"bearer" else None


def parse_entries(text: str) -> list[str]:
    """Return the entries of a keys file (one a line) or variable (comma-separated). # begins a comment line."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    return [entry.strip() for line in lines for entry in line.split(",") if entry.strip()]


def new_key(name: str, *, only_metrics: bool = False) -> tuple[str, str]:
    """Return a new key and its entry for a keys file. Raises ValueError where the name is invalid."""
    if not NAME.fullmatch(name):
        raise ValueError(f"{name[:200]!r} cannot be a key's name: letters, digits, dots, dashes, at most 64.")
    key = f"diptych-{secrets.token_urlsafe(32)}"
    return key, f"{name}:sha256:{_digest(key.encode()).hex()}" + (f":{ONLY_METRICS}" if only_metrics else "")


def _limits(name: str, suffixes: Sequence[str]) -> dict[str, Any]:
    """Return the limits that a key's entry sets, as `requests_at_once=4`. Raises ValueError naming the wrong one."""
    given = dict(suffix.partition("=")[::2] for suffix in suffixes)
    unknown = len(given) < len(suffixes) or not given.keys() <= KeyLimits.model_fields.keys()
    if unknown:
        known = ", ".join(f"{limit}=N" for limit in KeyLimits.model_fields)
        raise ValueError(f"The API key of {name} may be followed by :metrics alone, or once by each of: {known}.")
    try:
        return KeyLimits.model_validate(given).model_dump(exclude_unset=True)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise ValueError(f"The API key of {name}: {wrong['loc'][0]}: {wrong['msg']}.") from None


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
