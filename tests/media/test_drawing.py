"""serve.media.drawing: places and colours of boxes, masks and labels."""

import itertools

import numpy as np
import PIL.Image
import PIL.ImageColor
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.media.drawing import (
    BOLD_VEIL,
    COLOURS,
    MERGED,
    VEIL,
    Layer,
    _ink,
    _overlap,
    _places,
    colour_of,
    draw_layers,
)
from serve.media.lettering import Lettering
from serve.media.masks import encode

BLUE, ORANGE = COLOURS["blue"], COLOURS["orange"]


def item(*box: float, label: str = "cat", score: float = 0.9) -> dict[str, object]:
    return {"label": label, "box": list(box), "score": score}


def page(width: int = 400, height: int = 300) -> PIL.Image.Image:
    return PIL.Image.new("RGB", (width, height), "white")


def drawn_in(picture: PIL.Image.Image, colour: str) -> set[tuple[int, int]]:
    """Return the pixels of exactly this colour, as (x, y)."""
    rows, columns = np.nonzero((np.asarray(picture) == PIL.ImageColor.getrgb(colour)).all(axis=2))
    return set(zip(columns.tolist(), rows.tolist(), strict=True))


def test_frame_lies_on_the_edge_of_its_box() -> None:
    seen = drawn_in(draw_layers(page(), [Layer(BLUE, [item(100, 80, 300, 220)])]), BLUE)
    for x, y in ((100, 150), (299, 150), (200, 80), (200, 219)):
        assert (x, y) in seen
    for x, y in ((99, 150), (300, 150), (200, 220), (200, 150)):  # x1 and y1 are the first pixels outside
        assert (x, y) not in seen


def test_given_image_is_not_modified() -> None:
    picture = page()
    draw_layers(picture, [Layer(BLUE, [item(0, 0, 50, 50)])])
    assert picture.getcolors() == [(400 * 300, (255, 255, 255))]


def test_merged_frame_is_bold_and_lies_around_an_equal_box() -> None:
    box = item(100, 80, 300, 220)
    picture = draw_layers(page(), [Layer(BLUE, [box]), Layer(MERGED, [box], bold=True)])
    merged, single = drawn_in(picture, MERGED), drawn_in(picture, BLUE)
    assert (100, 150) in single and (99, 150) in merged
    assert sum((x, 150) in merged for x in range(90, 110)) == 2 * sum((x, 150) in single for x in range(90, 110))


def test_merged_frame_is_on_top() -> None:
    """Cross the merged frame with a model's box, which is drawn under it."""
    picture = draw_layers(
        page(), [Layer(BLUE, [item(50, 120, 350, 200)]), Layer(MERGED, [item(100, 40, 300, 260)], bold=True)]
    )
    assert picture.getpixel((99, 199)) == PIL.ImageColor.getrgb(MERGED)
    assert picture.getpixel((60, 199)) == PIL.ImageColor.getrgb(BLUE)


def test_labels_do_not_overlap() -> None:
    box = item(100, 80, 300, 220)
    layers = [Layer(BLUE, [box]), Layer(ORANGE, [box]), Layer(MERGED, [box], bold=True)]
    places = [place for _, _, place in _places(Lettering(), 12, layers, (400, 300))]
    assert len(places) == 3
    assert not any(_overlap(a, b) for a, b in itertools.combinations(places, 2))
    assert places[0][3] <= 80.01  # the merged label is placed first: above the box
    picture = draw_layers(page(), layers)
    for place, (colour, ink) in zip(places, ((MERGED, "white"), (ORANGE, "black"), (BLUE, "white")), strict=True):
        x, y = int(place[0]) + 1, int(place[1]) + 1
        assert picture.getpixel((x, y)) == PIL.ImageColor.getrgb(colour)
        inside = np.asarray(picture.crop(tuple(map(int, place)))).astype(int)
        assert (abs(inside - PIL.ImageColor.getrgb(ink)) < 60).all(axis=2).any()  # thin strokes are blended


def test_label_stays_inside_the_image() -> None:
    boxes = [item(0, 0, 20, 20), item(380, 280, 400, 300), item(390, 0, 400, 300)]
    for _, _, place in _places(Lettering(), 12, [Layer(BLUE, boxes)], (400, 300)):
        assert place[0] >= 0 and place[1] >= 0 and place[2] <= 400.01 and place[3] <= 300.01


@pytest.mark.parametrize("label", ["", "two\nlines", "猫", "x" * 500, "\x00\x1b[2J", "é ß"])
def test_any_text_can_be_a_label(label: str) -> None:
    assert drawn_in(draw_layers(page(), [Layer(BLUE, [item(10, 100, 90, 200, label=label)])]), BLUE)


def test_colours_differ_and_contrast_with_their_text() -> None:
    values = [*COLOURS.values(), MERGED]
    assert len(set(values)) == len(values)
    assert colour_of(0) == ("blue", BLUE) and colour_of(len(COLOURS)) == colour_of(0)
    for colour in values:
        assert _contrast(colour, _ink(colour)) > 3  # WCAG's least for large text


def _contrast(a: str, b: str) -> float:
    def light(colour: str) -> float:
        parts = [v / 255 for v in PIL.ImageColor.getrgb(colour)[:3]]
        red, green, blue = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    dark, bright = sorted((light(a), light(b)))
    return (bright + 0.05) / (dark + 0.05)


SIDE = st.integers(1, 300)
EDGE = st.floats(-50, 400)


@given(SIDE, SIDE, st.lists(st.tuples(EDGE, EDGE, EDGE, EDGE), max_size=4), st.booleans())
def test_any_box_is_drawn_on_an_image_of_any_size(
    width: int, height: int, boxes: list[tuple[float, ...]], bold: bool
) -> None:
    picture = draw_layers(page(width, height), [Layer(MERGED, [item(*box) for box in boxes], bold=bold)])
    assert picture.size == (width, height)


def masked(*box: int, size: tuple[int, int] = (300, 400)) -> dict[str, object]:
    """Make a box with a mask of its left half."""
    inside = np.zeros(size, bool)
    inside[box[1] : box[3], box[0] : (box[0] + box[2]) // 2] = True
    return item(*box) | {"mask": encode(inside).model_dump()}


def test_mask_is_transparent_with_an_opaque_edge() -> None:
    picture = draw_layers(page(), [Layer(BLUE, [masked(100, 80, 300, 220)])])
    veil = PIL.ImageColor.getrgb(BLUE)
    drawn = np.asarray(picture).astype(int)
    assert (drawn[150, 150] == [round(255 + (v - 255) * VEIL / 255) for v in veil]).all()  # the page shows through
    assert (drawn[150, 199] == veil).all()  # the mask's last column
    assert (drawn[150, 250] == 255).all()  # in the box, not in the mask


def test_merged_mask_lies_over_the_models_mask_and_is_more_opaque() -> None:
    both = draw_layers(
        page(), [Layer(BLUE, [masked(100, 80, 300, 220)]), Layer(MERGED, [masked(100, 80, 300, 220)], bold=True)]
    )
    alone = draw_layers(page(), [Layer(BLUE, [masked(100, 80, 300, 220)])])
    red, blue = np.asarray(both)[150, 150].astype(int), np.asarray(alone)[150, 150].astype(int)
    assert red[0] > red[2] and blue[2] > blue[0] and BOLD_VEIL > VEIL


@pytest.mark.parametrize(
    "mask", [{"size": [10, 10], "counts": "T3"}, {"size": [300, 400], "counts": "x"}, {"size": [300, 400]}, 7]
)
def test_malformed_mask_is_refused(mask: object) -> None:
    with pytest.raises(ValueError):
        draw_layers(page(), [Layer(BLUE, [item(10, 10, 50, 50) | {"mask": mask}])])


@given(EDGE, EDGE, EDGE, EDGE)
def test_mask_of_any_box_is_drawn(x0: float, y0: float, x1: float, y1: float) -> None:
    mask = encode(np.ones((30, 40), bool)).model_dump()
    draw_layers(page(40, 30), [Layer(MERGED, [item(x0, y0, x1, y1) | {"mask": mask}], bold=True)])
