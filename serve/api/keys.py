"""API keys, stored as SHA-256 digests. A key itself is in memory only when it is made or presented.

A key is 256 random bits: nobody finds it from its digest, however fast that is computed. A slow hash (scrypt), as for
passwords that people choose, would protect it no better and cost every request its time.
"""

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
from serve.rights import KeyRights
from serve.tasks import TASKS

NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
HASHED = re.compile(r"sha256:([0-9a-f]{64})((?::[^:]+)*)")
FORM = "name:sha256:HEX, perhaps followed by settings, as :scopes=ask:requests_per_minute=60"
ONLY_METRICS = "metrics"
"""The setting `scopes=scrape` as entries had it before there were scopes."""
KEY = re.compile(r"[\x21-\x2b\x2d-\x7e]+")  # fits in a header and in a list: ASCII, no blank, no comma
MIN_LENGTH = 24
"""Characters of a key that another program made: with fewer its digest could be inverted by trying."""


class Keys:
    """Named keys. Raises ValueError naming an invalid entry, without its key.

    entries: `name:sha256:HEX:SETTING=VALUE:...`, where a setting is a field of KeyRights or KeyLimits; or, as before
    there were digests, `name:key`. may_be_none: accept an empty list, with which every request is refused. rights,
    limits: by the key's name; limits are values of the fields that its entry sets. plain: names of keys that stand in
    their entry as they are.
    """

    def __init__(self, entries: Iterable[str], *, may_be_none: bool = False) -> None:
        self._digests: dict[str, bytes] = {}
        self.rights: dict[str, KeyRights] = {}
        self.limits: dict[str, dict[str, Any]] = {}
        self.plain: list[str] = []
        for at, entry in enumerate(entries, start=1):
            name, colon, key = entry.strip().partition(":")
            if not NAME.fullmatch(name) or not colon:
                raise ValueError(f"API key {at} is not of the form {FORM}.")
            if name in self._digests:
                raise ValueError(f"There are two API keys of the name {name}.")
            hashed = HASHED.fullmatch(key)
            if hashed is None and (key.startswith("sha256:") or not KEY.fullmatch(key)):
                raise ValueError(f"The API key of {name} must be of the form {FORM}; HEX is 64 digits.")
            if hashed is None:
                self.plain.append(name)
            self.rights[name], self.limits[name] = _settings(name, hashed[2].split(":")[1:] if hashed else [])
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


def new_key(name: str, *settings: str) -> tuple[str, str]:
    """Return a new key and its entry for a keys file. Raises ValueError where the name or a setting is invalid."""
    key = f"diptych-{secrets.token_urlsafe(32)}"
    return key, entry_of(name, key, *settings)


def entry_of(name: str, key: str, *settings: str) -> str:
    """Return the entry of a key for a keys file. settings: as `models=a+b`.

    Raises ValueError where the name, the key or a setting is invalid.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"{name[:200]!r} cannot be a key's name: letters, digits, dots, dashes, at most 64.")
    if not KEY.fullmatch(key) or len(key) < MIN_LENGTH:
        raise ValueError(f"A key is at least {MIN_LENGTH} random characters: ASCII without blanks or commas.")
    entry = ":".join([name, "sha256", _digest(key.encode()).hex(), *settings])
    if len(parse_entries(entry)) != 1:
        raise ValueError("A setting has no comma: several models or tasks are joined by +.")
    Keys([entry])
    return entry


def _settings(name: str, suffixes: Sequence[str]) -> tuple[KeyRights, dict[str, Any]]:
    """Return what the settings of a key's entry say. Raises ValueError naming the wrong one."""
    if suffixes == [ONLY_METRICS]:
        suffixes = ["scopes=scrape"]
    given = dict(suffix.partition("=")[::2] for suffix in suffixes)
    known = [*KeyRights.model_fields, *KeyLimits.model_fields]
    if len(given) < len(suffixes) or not given.keys() <= set(known):
        raise ValueError(
            f"The API key of {name} may be followed by each of these once: {', '.join(known)}, as {known[0]}=..."
        )
    rights, limits = (
        _validated(name, kind, {field: value for field, value in given.items() if field in kind.model_fields})
        for kind in (KeyRights, KeyLimits)
    )
    unknown = [task for task in rights.tasks or () if task not in TASKS]
    if unknown:
        raise ValueError(f"The API key of {name}: tasks: there is no {unknown[0]!r}. Tasks: {', '.join(TASKS)}.")
    return rights, limits.model_dump(exclude_unset=True)


def _validated(name: str, kind: Any, given: dict[str, str]) -> Any:
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise ValueError(f"The API key of {name}: {wrong['loc'][0]}: {wrong['msg']}.") from None


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
