"""Frames are decoded from bytes in pieces of any size."""

from collections.abc import Iterable
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.errors import ModelError, TooLarge
from serve.transport.peer import (
    HEAD,
    LENGTH,
    MAX_PARTS,
    PIECE_BYTES,
    BadFrame,
    Reader,
    Unreadable,
    encode_frame,
    pieces,
)

THINGS = st.lists(
    st.one_of(
        st.integers(),
        st.text(),
        st.binary(max_size=300),
        st.lists(st.integers(0, 255), min_size=1, max_size=300).map(lambda values: np.array(values, np.uint8)),
    ),
    max_size=4,
)


def same(left: object, right: object) -> bool:
    return np.array_equal(left, right) if isinstance(left, np.ndarray) else left == right


@given(st.lists(THINGS, min_size=1, max_size=4), st.lists(st.integers(1, 400), min_size=1))
def test_frames_are_decoded_from_pieces_of_any_size(frames: list[list[object]], cuts: list[int]) -> None:
    data = b"".join(bytes(part) for frame in frames for part in encode_frame(frame))
    reader, things, at = Reader(), [], 0
    while at < len(data):
        cut = cuts[at % len(cuts)]
        things += reader.feed(data[at : at + cut])
        at += cut
    assert len(things) == len(frames)
    for frame, received in zip(frames, things, strict=True):
        assert len(frame) == len(received) and all(map(same, frame, received))


@given(st.integers(MAX_PARTS + 1, 2**32 - 1), st.binary(min_size=8, max_size=40))
def test_impossible_frame_is_refused(parts: int, rest: bytes) -> None:
    with pytest.raises(BadFrame):
        Reader().feed(HEAD.pack(0, parts) + rest)


class Breaks:
    """An object that can be pickled but not unpickled."""

    def __init__(self, error: type[Exception]) -> None:
        self.error = error

    def __reduce__(self) -> tuple[object, ...]:
        return fail, (self.error,)


def fail(error: type[Exception]) -> None:
    raise error("no")


def flat(frame: Iterable[bytes | memoryview]) -> bytes:
    return b"".join(map(bytes, frame))


@settings(max_examples=25, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 3), st.integers(5_000, 70_000))
def test_small_frames_pass_between_pieces_of_large_frames(random: Random, count: int, cut: int) -> None:
    large = {number: np.full(PIECE_BYTES + 7 * number, number, np.uint8) for number in range(1, count + 1)}
    left = {number: list(pieces(encode_frame(thing, number), number)) for number, thing in large.items()}
    sent, wanted = [], []
    while left:
        number = random.choice(list(left))
        sent.append(flat(left[number].pop(0)))
        if not left[number]:
            del left[number]
            wanted.append(number)
        sent.append(flat(encode_frame(["small", len(sent)])))
        wanted.append(-len(sent) + 1)
    data, reader = b"".join(sent), Reader()
    things = [thing for at in range(0, len(data), cut) for thing in reader.feed(data[at : at + cut])]
    assert [-thing[1] if isinstance(thing, list) else int(thing[0]) for thing in things] == wanted
    for thing in things:
        assert isinstance(thing, list) or np.array_equal(thing, large[int(thing[0])])


@pytest.mark.parametrize("count", [MAX_PARTS - 1, MAX_PARTS, MAX_PARTS + 1, 3000])
def test_frame_with_any_number_of_arrays_is_decoded(count: int) -> None:
    arrays = [np.full(at % 5, at % 256, np.uint8) for at in range(count)]
    (back,) = Reader().feed(flat(encode_frame(arrays)))
    assert all(map(np.array_equal, back, arrays)) and len(back) == count


@pytest.mark.parametrize("error", [ValueError, ModelError, ImportError])
@pytest.mark.parametrize("cut", [1, 50, 10**6])
def test_frame_that_cannot_be_unpickled_leaves_other_frames_intact(error: type[Exception], cut: int) -> None:
    large = [np.zeros(300, np.uint8), Breaks(error)]
    data = flat(
        [
            *encode_frame("a", 1),
            *encode_frame(Breaks(error), 2),
            *encode_frame("b", 3),
            *encode_frame(large, 4),
            *encode_frame("c", 5),
        ]
    )
    reader = Reader()
    things = [thing for at in range(0, len(data), cut) for thing in reader.feed(data[at : at + cut])]
    assert [thing for thing in things if not isinstance(thing, Unreadable)] == ["a", "b", "c"]
    unreadable = [thing for thing in things if isinstance(thing, Unreadable)]
    assert [thing.number for thing in unreadable] == [2, 4] and {type(thing.error) for thing in unreadable} == {error}


def test_forgotten_frame_may_be_sent_again() -> None:
    first, *_ = pieces(encode_frame(np.zeros(2 * PIECE_BYTES, np.uint8), 5), 5)
    reader = Reader()
    assert reader.feed(flat(first)) == []
    reader.forget(5)
    things = [thing for piece in pieces(encode_frame("again", 5), 5) for thing in reader.feed(flat(piece))]
    assert things == ["again"]


@pytest.mark.parametrize(
    "data",
    [
        HEAD.pack(0, 1) + LENGTH.pack(0),
        HEAD.pack(0, 0) + LENGTH.pack(0),
        HEAD.pack(0, 2) + LENGTH.pack(2**40) * 2,
        HEAD.pack(3, 0) + LENGTH.pack(20) + HEAD.pack(3, 0) + LENGTH.pack(9),  # a piece in a piece
        HEAD.pack(3, 0) + LENGTH.pack(30) + HEAD.pack(3, 1) + LENGTH.pack(5) + b"x" * 10,  # more than its frame
    ],
)
def test_bytes_that_are_no_frame_are_refused(data: bytes) -> None:
    with pytest.raises(BadFrame):
        Reader().feed(data)


def test_frame_beyond_the_limit_is_not_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.transport.peer.MAX_BYTES", 10_000)
    with pytest.raises(TooLarge):
        encode_frame([np.zeros(6_000, np.uint8), np.ones(6_000, np.uint8)])
