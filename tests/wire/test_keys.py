"""Keys as they are written down, and the shares that they have."""

import contextlib
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.wire.keys import Keys, made, parsed
from serve.wire.shares import Shares


def bearer(key: bytes) -> list[tuple[bytes, bytes]]:
    return [(b"host", b"x"), (b"authorization", b"Bearer " + key)]


def test_a_made_key_lets_in_by_its_entry() -> None:
    key, entry = made("alice")
    assert key not in entry and len(key) > 40
    keys = Keys([entry, "bob:plain-key"])
    assert keys.owner(bearer(key.encode())) == "alice" and keys.owner(bearer(b"plain-key")) == "bob"
    assert keys.owner(bearer(entry.encode())) is None and keys.names == ["alice", "bob"]
    assert keys.owner(bearer(hashlib.sha256(key.encode()).hexdigest().encode())) is None


def test_the_scheme_is_read_as_http_has_it() -> None:
    keys = Keys(["a:key"])
    assert keys.owner([(b"authorization", b"bearer key")]) == "a"
    assert keys.owner([(b"authorization", b"Bearer  key ")]) == "a"


@given(st.binary(max_size=200))
def test_no_other_bytes_let_in(given: bytes) -> None:
    keys = Keys(["a:the-key"])
    assert keys.owner([(b"authorization", given)]) is None or given.split() == [given.split()[0], b"the-key"]
    assert keys.owner(bearer(given)) == ("a" if given.strip() == b"the-key" else None)


def test_a_file_and_a_variable_are_read_alike() -> None:
    assert parsed("# ours\n a:1 \n\nb:2\r\n  # c:3\n") == ["a:1", "b:2"]
    assert parsed("a:1, b:2,") == ["a:1", "b:2"]


@pytest.mark.parametrize(
    "entry",
    ["", "secret", "a:", "a b:secret", ":secret", "a:geheim ß", "a:sec ret", "a:sha256:12", "a:sha256:" + "G" * 64],
)
def test_what_is_no_key_is_refused_and_not_repeated(entry: str) -> None:
    with pytest.raises(ValueError) as refused:
        Keys(["ok:fine", entry])
    assert "secret" not in str(refused.value) and "geheim" not in str(refused.value)


def test_two_of_a_name_or_none_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match="two API keys of the name a"):
        Keys(["a:1", "a:2"])
    with pytest.raises(ValueError, match="there is none"):
        Keys([])


def test_a_share_fills_up_again() -> None:
    now = [0.0]
    shares = Shares(["a", "b"], per_minute=2, clock=lambda: now[0])
    assert [shares.take("a") for _ in range(3)] == [None, None, 30]
    assert shares.take("b") is None
    now[0] = 29
    assert shares.take("a") == 1
    now[0] = 30
    assert shares.take("a") is None and shares.take("a") == 30
    now[0] = 10_000
    assert [shares.take("a") for _ in range(3)] == [None, None, 30]


def test_what_is_refused_for_running_costs_nothing_of_the_minute() -> None:
    shares = Shares(["a"], per_minute=2, at_once=1, clock=lambda: 0.0)
    assert shares.take("a") is None
    assert [shares.take("a") for _ in range(5)] == [1] * 5
    shares.give_back("a")
    assert shares.take("a") is None


@given(st.lists(st.floats(0, 100), max_size=50), st.integers(1, 30))
def test_never_more_than_twice_a_minutes_share_in_a_minute(waits: list[float], most: int) -> None:
    now, taken = 0.0, []
    shares = Shares(["a"], per_minute=most, clock=lambda: now)
    for wait in waits:
        now += wait
        if shares.take("a") is None:
            taken.append(now)
    for start in taken:
        assert sum(start <= at < start + 60 for at in taken) <= 2 * most


def test_a_key_may_be_for_metrics_only() -> None:
    key, entry = made("prometheus", only_metrics=True)
    keys = Keys([entry, "alice:4lice"])
    assert keys.owner(bearer(key.encode())) == "prometheus" and keys.only_metrics == {"prometheus"}
    for wrong in (entry + ":metrics", entry.replace(":metrics", ":admin"), entry + "x", "prometheus:metrics:" + key):
        with contextlib.suppress(ValueError):
            assert not Keys([wrong]).only_metrics


def test_where_it_is_allowed_nobody_has_a_key() -> None:
    nobody = Keys([], may_be_none=True)
    assert nobody.names == [] and nobody.owner(bearer(b"")) is None and nobody.owner([]) is None


def test_what_was_used_stays_counted_when_the_limits_change() -> None:
    now = [0.0]
    shares = Shares(per_minute=3, at_once=2, clock=lambda: now[0])
    assert [shares.take("a"), shares.take("a")] == [None, None]
    shares.limit(per_minute=2, at_once=9)
    assert shares.take("a") is None and shares.take("a") == 30
    assert shares.take("new") is None
    shares.limit(per_minute=None, at_once=2)
    assert shares.take("a") == 1
    shares.give_back("a")
    shares.give_back("a")
    assert shares.take("a") is None
