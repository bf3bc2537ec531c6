"""Frames as bytes that come in any pieces."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.rpc.frames import COUNT, MOST_PARTS, Garbled, Reader, encode

THINGS = st.lists(
    st.one_of(
        st.integers(),
        st.text(),
        st.binary(max_size=300),
        st.lists(st.integers(0, 255), min_size=1, max_size=300).map(lambda values: np.array(values, np.uint8)),
    ),
    max_size=4,
)


def same(one: object, other: object) -> bool:
    return np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other


@given(st.lists(THINGS, min_size=1, max_size=4), st.lists(st.integers(1, 400), min_size=1))
def test_they_are_the_same_however_they_are_cut(frames: list[list[object]], cuts: list[int]) -> None:
    said = b"".join(bytes(part) for frame in frames for part in encode(frame))
    reader, found, at = Reader(), [], 0
    while at < len(said):
        cut = cuts[at % len(cuts)]
        found += reader.feed(said[at : at + cut])
        at += cut
    assert len(found) == len(frames)
    for frame, heard in zip(frames, found, strict=True):
        assert len(frame) == len(heard) and all(map(same, frame, heard))


@given(st.one_of(st.just(0), st.integers(MOST_PARTS + 1, 2**32 - 1)), st.binary(min_size=8, max_size=40))
def test_what_cannot_be_one_is_garbled(parts: int, rest: bytes) -> None:
    with pytest.raises(Garbled):
        Reader().feed(COUNT.pack(parts) + rest)
