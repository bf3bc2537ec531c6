"""Keys are read from their entries, with rights and limits."""

import datetime
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.api.keys import Keys, entry_of, new_key, parse_entries
from serve.rights import KeyRights


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


def test_entry_sets_rights_of_its_key() -> None:
    _, entry = new_key("carol", "scopes=ask+admin", "models=toy-llava+toy-paligemma", "tasks=vqa", "expires=2027-01-31")
    keys = Keys([entry, new_key("alice")[1]])
    assert keys.rights["alice"] == KeyRights() and keys.rights["alice"].scopes == ("ask", "scrape")
    assert keys.rights["carol"] == KeyRights(
        scopes=("ask", "admin"),
        models=("toy-llava", "toy-paligemma"),
        tasks=("vqa",),
        expires=datetime.date(2027, 1, 31),
    )


def test_entries_from_before_settings_are_still_read() -> None:
    key, entry = new_key("prometheus")
    keys = Keys([f"{entry}:metrics", "alice:4lice"])
    assert keys.owner(bearer(key.encode())) == "prometheus" and keys.rights["prometheus"].scopes == ("scrape",)
    assert keys.plain == ["alice"] and keys.rights["alice"] == KeyRights()


def test_entry_of_a_foreign_key_is_refused_where_that_is_short() -> None:
    entry = entry_of("alice", "0123456789abcdefghijklmn", "tasks=vqa")
    assert Keys([entry]).owner(bearer(b"0123456789abcdefghijklmn")) == "alice"
    for key in ("short", "0123456789 abcdefghijklmn", "0123456789,abcdefghijklmn"):
        with pytest.raises(ValueError, match="at least 24 random characters"):
            entry_of("alice", key)
    with pytest.raises(ValueError, match="joined by"):
        new_key("alice", "models=a,b:x")


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
        (":max_body_mb=3", "followed by each of these once: scopes, models, "),  # it is checked before the key is known
        (":requests_at_once=3:requests_at_once=4", "followed by each of"),
        (":metrics:requests_at_once=3", "followed by each of"),
        (":scopes=root", "alice: scopes: Input should be 'ask', 'scrape' or 'admin'"),
        (":tasks=vqa+paint", "alice: tasks: there is no 'paint'. Tasks: "),
        (":expires=soon", "alice: expires: Input should be a valid date"),
        (":models=", "alice: models: "),
    ],
)
def test_wrong_limit_of_a_key_is_refused(suffix: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Keys([new_key("alice")[1] + suffix])


def test_empty_keys_accept_no_key_where_allowed() -> None:
    nobody = Keys([], may_be_none=True)
    assert nobody.names == [] and nobody.owner(bearer(b"")) is None and nobody.owner([]) is None
