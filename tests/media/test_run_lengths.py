"""COCO's run lengths, there and back, whole and in windows. (tests/toy has a test_masks of its own.)"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from serve.media.masks import (
    MOST_PIXELS,
    Rle,
    Window,
    _pack,
    _unpack,
    area,
    decode,
    decode_in,
    encode,
    encode_in,
    overlap,
    sample,
)

masks = arrays.arrays(bool, arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12))


@st.composite
def windows(draw: st.DrawFn) -> tuple[np.ndarray, Window]:
    """A mask and a part of it, which may be empty."""
    mask = draw(masks)
    rows = sorted(draw(st.tuples(*[st.integers(0, mask.shape[0])] * 2)))
    columns = sorted(draw(st.tuples(*[st.integers(0, mask.shape[1])] * 2)))
    return mask, Window(columns[0], rows[0], columns[1], rows[1])


@given(masks)
def test_a_mask_comes_back(mask: np.ndarray) -> None:
    rle = encode(mask)
    assert rle.size == mask.shape
    assert (decode(rle) == mask).all()
    assert area(rle) == mask.sum()


@given(windows())
def test_window_holds_the_same_pixels_as_the_mask(drawn: tuple[np.ndarray, Window]) -> None:
    mask, window = drawn
    part = mask[window.top : window.bottom, window.left : window.right]
    assert (decode_in(encode(mask), window) == part).all()
    alone = np.zeros_like(mask)
    alone[window.top : window.bottom, window.left : window.right] = part
    assert encode_in(part, window, (mask.shape[0], mask.shape[1])) == encode(alone)


@given(masks, st.data())
def test_a_sample_is_the_pixels_where_rows_and_columns_meet(mask: np.ndarray, data: st.DataObject) -> None:
    rows, columns = (
        np.array(data.draw(st.lists(st.integers(0, side - 1), max_size=6)), np.int64) for side in mask.shape
    )
    assert (sample(encode(mask), rows, columns) == mask[np.ix_(rows, columns)]).all()


@given(masks, st.data())
def test_overlap_is_that_of_the_pixels(mask: np.ndarray, data: st.DataObject) -> None:
    other = data.draw(arrays.arrays(bool, mask.shape))
    union = (mask | other).sum()
    assert overlap(encode(mask), encode(other)) == ((mask & other).sum() / union if union else 1.0)
    assert overlap(encode(mask), encode(np.zeros((13, 1), bool))) == 0.0


@given(st.lists(st.integers(0, MOST_PIXELS), min_size=1, max_size=40))
def test_runs_of_any_length_come_back(runs: list[int]) -> None:
    assert _unpack(_pack(np.array(runs, np.int64))).tolist() == runs


@pytest.mark.parametrize("counts", ["o" * 13 + "0", "o" * 100_000 + "0", "o" * 100_000, "0" * 100_000 + "o", "é" * 9])
def test_malformed_characters_are_refused(counts: str) -> None:
    with pytest.raises(ValueError, match="run"):
        decode(Rle(size=(4, 5), counts=counts))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' own, with numpy 2
@given(masks)
@settings(deadline=None)
def test_run_lengths_equal_those_of_pycocotools(mask: np.ndarray) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    ours = encode(mask)
    assert ours.counts == theirs["counts"].decode()
    assert (coco.decode({"size": list(ours.size), "counts": ours.counts.encode()}) == mask).all()


def test_known_run_lengths() -> None:
    mask = np.zeros((4, 5), bool)
    mask[1:3, 2:4] = True
    assert encode(mask) == Rle(size=(4, 5), counts="92203")  # 9 out, 2 in, 2 out, the same in, 3 more out
    assert encode(np.zeros((2, 2), bool)).counts == "4"
    assert encode(np.ones((2, 2), bool)).counts == "04"


@pytest.mark.parametrize("counts", ["", "5", "3", "0000/", "é", "P", "44"])
def test_run_lengths_that_do_not_fill_the_mask_are_refused(counts: str) -> None:
    with pytest.raises(ValueError, match="run length"):
        decode(Rle(size=(2, 2), counts=counts))


def stairs(more: int = 0) -> list[int]:
    """Runs of 2**64 + `more` * 2**46 pixels, none more than 2**32 longer or shorter than the run before the last."""
    rise = [step << 32 for step in range(1, 2**14 + 1) for _ in range(2)]
    return [*rise, *[2**46] * (2**18 - 2 * (2**14 + 1) + more), *rise[::-1]]


@pytest.mark.parametrize(
    ("size", "runs"),
    [
        ((10, 10), [2**58] * 64 + [100]),
        ((10, 10), [*stairs(), 100]),
        ((2**33, 2**18), [2**51] * (2**13 + 1)),
        ((2**23, 2**23), stairs(more=1)),
    ],
    ids=["long", "stairs", "long in a large mask", "stairs in a large mask"],
)
def test_run_lengths_whose_sum_overflows_are_refused(size: tuple[int, int], runs: list[int]) -> None:
    assert sum(runs) == 2**64 + size[0] * size[1]
    rle = Rle(size=size, counts=_pack(np.array(runs, np.int64)))
    place = np.zeros(1, np.int64)
    for use in (area, lambda rle: decode_in(rle, Window(0, 0, 0, 0)), lambda rle: sample(rle, place, place)):
        with pytest.raises(ValueError, match="run"):
            use(rle)


@pytest.mark.parametrize("length", [MOST_PIXELS + 1, -MOST_PIXELS - 2, 2**40, 2**58])
def test_number_longer_than_any_mask_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="longer than any mask"):
        _unpack(_pack(np.array([0, 0, 0, 0, length], np.int64)))


@given(st.tuples(*[st.floats(-50, 100)] * 4), st.integers(1, 40), st.integers(1, 40))
def test_a_window_lies_inside_the_image(box: tuple[float, float, float, float], width: int, height: int) -> None:
    window = Window.around(box, width, height)
    assert 0 <= window.left <= window.right and 0 <= window.top <= window.bottom
    if window.shape[0] and window.shape[1]:
        assert window.right <= width and window.bottom <= height


def test_a_mask_that_does_not_fit_its_window_is_refused() -> None:
    for window in (Window(0, 0, 3, 2), Window(4, 0, 6, 2), Window(0, 3, 2, 5)):
        with pytest.raises(ValueError, match="does not fit"):
            encode_in(np.zeros((2, 2), bool), window, (4, 5))
