import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.geometry import clip, from_padded, iou, pad_to_square, padding
from serve.image import Image

sides = st.integers(1, 300)


def boxes(*rows: tuple[float, float, float, float]) -> np.ndarray:
    return np.array(rows, float)


def test_iou() -> None:
    a = boxes((0, 0, 10, 10))
    b = boxes((0, 0, 10, 10), (5, 0, 15, 10), (20, 20, 30, 30), (3, 3, 3, 3))
    assert iou(a, b)[0] == pytest.approx([1, 1 / 3, 0, 0])
    assert iou(boxes((1, 1, 1, 1)), boxes((1, 1, 1, 1)))[0, 0] == 0


@given(sides, sides)
def test_padding_keeps_every_pixel_in_its_place(width: int, height: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    square = pad_to_square(Image(pixels), (1, 2, 3))
    side, left, top = padding(width, height)
    assert (square.width, square.height) == (side, side)
    assert (square.pixels[top : top + height, left : left + width] == pixels).all()
    assert int((square.pixels == (1, 2, 3)).all(axis=2).sum()) >= side * side - width * height


@given(sides, sides, st.tuples(*[st.floats(0, 1)] * 4))
def test_boxes_come_back_from_the_padded_square(width: int, height: int, f: tuple[float, float, float, float]) -> None:
    x0, x1 = sorted((f[0] * width, f[1] * width))
    y0, y1 = sorted((f[2] * height, f[3] * height))
    side, left, top = padding(width, height)
    said = ((x0 + left) / side, (y0 + top) / side, (x1 + left) / side, (y1 + top) / side)
    assert from_padded(said, width, height) == pytest.approx((x0, y0, x1, y1), abs=0.011)


def test_a_box_in_the_padding_is_clipped_away() -> None:
    assert from_padded((0.0, 0.0, 1.0, 0.1), 100, 50) == (0, 0, 100, 0)
    assert clip((-5, 2.346, 200, 20), 100, 10) == (0, 2.35, 100, 10)
