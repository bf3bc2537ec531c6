"""Names in little memory: none is lost, none is found that was never added."""

import random

import pytest

from serve.client.storage import names
from serve.client.storage.names import NameSet


@pytest.mark.parametrize("pending", [1, 7, 1000])
def test_names_are_a_set(pending: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "PENDING", pending)
    known, seen = NameSet(), set()
    for number in random.Random(0).choices(range(300), k=900):
        name = f"folder/{number}.jpg"
        assert (name in known) is (name in seen)
        assert known.add(name) is (name not in seen)
        seen.add(name)
        assert len(known) == len(seen)
    assert all(f"folder/{number}.jpg" in known for number in range(300) if f"folder/{number}.jpg" in seen)


def test_digest_that_ends_in_zeros_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "PENDING", 2)
    digests = {"a": b"\1".rjust(15, b"\2") + b"\0", "b": b"\1".rjust(15, b"\2") + b"\3", "c": b"\0" * 16}
    monkeypatch.setattr(names, "_key", lambda name: digests[name].rstrip(b"\0"))
    known = NameSet()
    assert [known.add(name) for name in "abcabc"] == [True] * 3 + [False] * 3


def test_name_that_is_no_utf8_is_kept() -> None:
    known = NameSet()
    known.add("caf\udce9.jpg")
    assert "caf\udce9.jpg" in known and "café.jpg" not in known
