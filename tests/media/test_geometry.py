import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.media.geometry import clip, from_padded, iou, pad_to_square, padding
from serve.media.image import Image
from serve.media.outline import MAX_PIXELS

sides = st.integers(1, 300)


def boxes(*rows: tuple[float, float, float, float]) -> np.ndarray:
    return np.array(rows, float)


def test_iou() -> None:
    a = boxes((0, 0, 10, 10))
    b = boxes((0, 0, 10, 10), (5, 0, 15, 10), (20, 20, 30, 30), (3, 3, 3, 3))
    assert iou(a, b)[0] == pytest.approx([1, 1 / 3, 0, 0])
    assert iou(boxes((1, 1, 1, 1)), boxes((1, 1, 1, 1)))[0, 0] == 0


@settings(deadline=None)  # a loaded machine is no fault of it
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
    fractions = ((x0 + left) / side, (y0 + top) / side, (x1 + left) / side, (y1 + top) / side)
    assert from_padded(fractions, width, height) == pytest.approx((x0, y0, x1, y1), abs=0.011)


@pytest.mark.parametrize(
    ("width", "height", "side", "inner"),
    [
        (4000, 3000, 4000, (4000, 3000)),
        (3000, 1000, 3000, (3000, 1000)),
        (2304, 1, 2304, (2304, 1)),
        (16384, 1, 2304, (2304, 1)),
        (1, 5000, 2304, (1, 2304)),
        (16384, 2441, 2304, (2304, 343)),
        (8000, 5000, 2304, (2304, 1440)),  # as it is, the square would have more pixels than a picture may
        (6000, 1400, 2304, (2304, 538)),
    ],
)
def test_a_square_is_not_far_larger_than_its_image(width: int, height: int, side: int, inner: tuple[int, int]) -> None:
    actual, left, top = padding(width, height)
    assert actual == side and (left, top) == ((side - inner[0]) // 2, (side - inner[1]) // 2)
    assert actual**2 <= max(2304**2, min(MAX_PIXELS, 4 * width * height))


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height"), [(5000, 30), (30, 5000), (7000, 1000), (1, 4000)])
def test_shrunk_image_keeps_shape_place_and_colours(width: int, height: int) -> None:
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: max(1, height // 2), : max(1, width // 2)] = (200, 100, 50)
    square = pad_to_square(Image(pixels), (1, 2, 3))
    side, left, top = padding(width, height)
    assert square.pixels.shape == (side, side, 3) and side < max(width, height)
    across, down = max(1, round(width * side / max(width, height))), max(1, round(height * side / max(width, height)))
    inner = square.pixels[top : top + down, left : left + across]
    around = square.pixels.astype(int).sum() - inner.astype(int).sum()
    assert around == (side * side - across * down) * (1 + 2 + 3)
    assert tuple(inner[down // 4, across // 4]) == (200, 100, 50)
    assert tuple(inner[(3 * down) // 4, (3 * across) // 4]) == (0, 0, 0)


def test_square_is_created_on_first_use_with_a_digest_by_image_and_colour() -> None:
    picture = Image(np.zeros((10, 30, 3), np.uint8), "d" * 40)
    grey, black = pad_to_square(picture, (127, 127, 127)), pad_to_square(picture, (0, 0, 0))
    assert len({picture.digest, grey.digest, black.digest}) == 3
    assert pad_to_square(Image(picture.pixels), (0, 0, 0)).digest is None
    again = pickle.loads(pickle.dumps(grey))
    assert again.digest == grey.digest and (again.pixels == grey.pixels).all()
    grey.release_pixels()
    assert (grey.width, grey.height) == (30, 30) and (again.pixels == grey.pixels).all()
    square = Image(np.zeros((10, 10, 3), np.uint8))
    assert pad_to_square(square, (0, 0, 0)) is square


def test_a_box_in_the_padding_is_clipped_away() -> None:
    assert from_padded((0.0, 0.0, 1.0, 0.1), 100, 50) == (0, 0, 100, 0)
    assert clip((-5, 2.346, 200, 20), 100, 10) == (0, 2.35, 100, 10)
