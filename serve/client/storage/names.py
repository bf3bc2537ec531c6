"""A set of millions of names in little memory."""

import hashlib

import numpy as np

PENDING = 2**15
"""Names that are kept apart until they are sorted in."""


class NameSet:
    """Names by their digests of 16 bytes, 16 bytes each. Two names have the same digest with a chance of 2^-128."""

    def __init__(self) -> None:
        self._sorted = np.empty(0, "S16")
        self._pending: set[bytes] = set()

    def add(self, name: str) -> bool:
        """Add a name. Return whether it is new."""
        key = _key(name)
        if self._holds(key):
            return False
        self._pending.add(key)
        if len(self._pending) >= PENDING:
            new = np.sort(np.array(list(self._pending), "S16"))
            self._sorted = np.insert(self._sorted, np.searchsorted(self._sorted, new), new)
            self._pending.clear()
        return True

    def __contains__(self, name: str) -> bool:
        return self._holds(_key(name))

    def __len__(self) -> int:
        return len(self._sorted) + len(self._pending)

    def _holds(self, key: bytes) -> bool:
        if key in self._pending:
            return True
        at = int(self._sorted.searchsorted(key))
        return at < len(self._sorted) and bool(self._sorted[at] == key)


def encoded_name(name: str) -> bytes:
    """Return a name in UTF-8, with \\udcff in place of a byte of a file's name that is none."""
    return name.encode("utf-8", "backslashreplace")


def _key(name: str) -> bytes:
    """Return a name's digest, without zeros at its end, which NumPy drops."""
    return hashlib.blake2b(encoded_name(name), digest_size=16).digest().rstrip(b"\0")
