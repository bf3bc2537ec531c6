"""Keys are read from their entries, and their requests are counted by a rate limiter."""

import contextlib
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.api.keys import Keys, new_key, parse_entries
from serve.api.rate_limiter import RateLimiter
from serve.limits import RateLimits


def bearer(key: bytes) -> list[tuple[bytes, bytes]]:
    return [(b"host", b"x"), (b"authorization", b"Bearer " + key)]


def test_new_key_is_known_by_its_entry() -> None:
    key, entry = new_key("alice")
    assert key not in entry and len(key) > 40
    keys = Keys([entry, "bob:plain-key"])
    assert keys.owner(bearer(key.encode())) == "alice" and keys.owner(bearer(b"plain-key")) == "bob"
    assert keys.owner(bearer(entry.encode())) is None and keys.names == ["alice", "bob"]
    assert keys.owner(bearer(hashlib.sha256(key.encode()).hexdigest().encode())) is None


def test_scheme_is_read_in_any_case_and_spacing() -> None:
    keys = Keys(["a:key"])
    assert keys.owner([(b"authorization", b"bearer key")]) == "a"
    assert keys.owner([(b"authorization", b"Bearer  key ")]) == "a"


@given(st.binary(max_size=200))
def test_invalid_header_has_no_owner(given: bytes) -> None:
    keys = Keys(["a:the-key"])
    assert keys.owner([(b"authorization", given)]) is None or given.split() == [given.split()[0], b"the-key"]
    assert keys.owner(bearer(given)) == ("a" if given.strip() == b"the-key" else None)


def test_file_and_variable_are_read_alike() -> None:
    assert parse_entries("# ours\n a:1 \n\nb:2\r\n  # c:3\n") == ["a:1", "b:2"]
    assert parse_entries("a:1, b:2,") == ["a:1", "b:2"]


@pytest.mark.parametrize(
    "entry",
    ["", "secret", "a:", "a b:secret", ":secret", "a:geheim ß", "a:sec ret", "a:sha256:12", "a:sha256:" + "G" * 64],
)
def test_malformed_entry_is_refused_and_not_quoted(entry: str) -> None:
    with pytest.raises(ValueError) as refused:
        Keys(["ok:fine", entry])
    assert "secret" not in str(refused.value) and "geheim" not in str(refused.value)


def test_repeated_name_and_missing_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="two API keys of the name a"):
        Keys(["a:1", "a:2"])
    with pytest.raises(ValueError, match="there is none"):
        Keys([])


def test_tokens_refill_with_time() -> None:
    now = [0.0]
    limiter, two = RateLimiter(clock=lambda: now[0]), RateLimits(requests_per_minute=2)
    assert [limiter.start("a", two) for _ in range(3)] == [None, None, 30]
    assert limiter.start("b", two) is None
    now[0] = 29
    assert limiter.start("a", two) == 1
    now[0] = 30
    assert limiter.start("a", two) is None and limiter.start("a", two) == 30
    now[0] = 10_000
    assert [limiter.start("a", two) for _ in range(3)] == [None, None, 30]


def test_request_refused_for_the_limit_at_once_takes_no_token() -> None:
    limiter, limits = RateLimiter(clock=lambda: 0.0), RateLimits(requests_per_minute=2, requests_at_once=1)
    assert limiter.start("a", limits) is None
    assert [limiter.start("a", limits) for _ in range(5)] == [1] * 5
    limiter.finish("a")
    assert limiter.start("a", limits) is None


@given(st.lists(st.floats(0, 100), max_size=50), st.integers(1, 30))
def test_at_most_twice_the_minutes_limit_starts_in_a_minute(waits: list[float], most: int) -> None:
    now, taken = 0.0, []
    limiter, limits = RateLimiter(clock=lambda: now), RateLimits(requests_per_minute=most)
    for wait in waits:
        now += wait
        if limiter.start("a", limits) is None:
            taken.append(now)
    for start in taken:
        assert sum(start <= at < start + 60 for at in taken) <= 2 * most


def test_key_may_be_for_metrics_only() -> None:
    key, entry = new_key("prometheus", only_metrics=True)
    keys = Keys([entry, "alice:4lice"])
    assert keys.owner(bearer(key.encode())) == "prometheus" and keys.only_metrics == {"prometheus"}
    for wrong in (entry + ":metrics", entry.replace(":metrics", ":admin"), entry + "x", "prometheus:metrics:" + key):
        with contextlib.suppress(ValueError):
            assert not Keys([wrong]).only_metrics


def test_entry_sets_limits_of_its_key() -> None:
    entry = new_key("alice")[1]
    keys = Keys(
        [f"{entry}:requests_per_minute=60:max_image_megapixels=2.5:max_models=2", "bob:plain:requests_per_minute=60"]
    )
    assert keys.limits == {
        "alice": {"requests_per_minute": 60, "max_image_megapixels": 2.5, "max_models": 2},
        "bob": {},
    }
    assert keys.owner(bearer(b"plain:requests_per_minute=60")) == "bob"


@pytest.mark.parametrize(
    ("suffix", "message"),
    [
        (":requests_per_minute=0", "alice: requests_per_minute: Input should be greater than or equal to 1"),
        (":requests_per_minute=many", "alice: requests_per_minute: Input should be a valid integer"),
        (":requests_per_minute", "requests_per_minute: Input should be a valid integer"),
        (":max_body_mb=3", "once by each of: requests_per_minute=N, "),  # it is checked before the key is known
        (":requests_at_once=3:requests_at_once=4", "once by each of"),
        (":metrics:requests_at_once=3", "metrics alone"),
    ],
)
def test_wrong_limit_of_a_key_is_refused(suffix: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Keys([new_key("alice")[1] + suffix])


def test_empty_keys_accept_no_key_where_allowed() -> None:
    nobody = Keys([], may_be_none=True)
    assert nobody.names == [] and nobody.owner(bearer(b"")) is None and nobody.owner([]) is None


def test_usage_stays_counted_when_limits_change() -> None:
    now = [0.0]
    limiter, limits = RateLimiter(clock=lambda: now[0]), RateLimits(requests_per_minute=3, requests_at_once=2)
    assert [limiter.start("a", limits), limiter.start("a", limits)] == [None, None]
    limits = RateLimits(requests_per_minute=2, requests_at_once=9)
    assert limiter.start("a", limits) is None and limiter.start("a", limits) == 30
    assert limiter.start("new", limits) is None
    limits = RateLimits(requests_at_once=2)
    assert limiter.start("a", limits) == 1
    limiter.finish("a")
    limiter.finish("a")
    assert limiter.start("a", limits) is None
