"""serve.tasks.merging.mask_vote: masks laid over each other where their boxes say, and a vote on every pixel."""

import numpy as np
import pytest

from serve.media.masks import Mask, Rle, area, decode, encode
from serve.tasks import TASKS
from serve.tasks.masks import LabelledMask, SegmentResult
from serve.tasks.merging import mask_vote
from serve.tasks.reply import Merged, Reply

HEIGHT, WIDTH = 60, 80
Box = tuple[int, int, int, int]


def disc(box: Box) -> Mask:
    """Return the ellipse that fills a box."""
    x0, y0, x1, y1 = box
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    return ((x - (x0 + x1) / 2) / ((x1 - x0) / 2)) ** 2 + ((y - (y0 + y1) / 2) / ((y1 - y0) / 2)) ** 2 < 1


def cut(box: Box, score: float = 0.9, mask: Mask | None = None, label: str = "cat") -> LabelledMask:
    return LabelledMask(label=label, box=box, score=score, mask=encode(disc(box) if mask is None else mask))


def vote(*columns: list[LabelledMask], method: str = "mask_vote", weights: dict[str, float] | None = None) -> Merged:
    replies = [Reply(model="abcd"[i], status="ok", result=SegmentResult(boxes=rows)) for i, rows in enumerate(columns)]
    return TASKS["segment"].methods[method](replies, weights or {})


def instances(merged: Merged) -> list[LabelledMask]:
    assert isinstance(merged.result, SegmentResult)
    return merged.result.boxes


def iou(a: Mask, b: Mask) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_masks_that_only_lie_differently_reinforce_each_other() -> None:
    """Triangles of one shape, shifted: a plain vote keeps what most of them cover, which is no triangle any more."""

    def triangle(x: int, y: int) -> LabelledMask:
        rows, columns = np.mgrid[:HEIGHT, :WIDTH]
        inside = (rows >= y) & (rows < y + 32) & (columns >= x) & (columns - x <= rows - y)
        return cut((x, y, x + 32, y + 32), mask=inside)

    shifted = [triangle(10, 12), triangle(16, 12), triangle(13, 18)]
    (merged,) = instances(vote(*([triangle] for triangle in shifted)))
    true = decode(triangle(13, 14).mask)
    assert merged.box == (13, 14, 45, 46)
    assert (decode(merged.mask) == true).all()
    plain = sum(decode(triangle.mask).astype(int) for triangle in shifted) >= 2
    assert iou(plain, true) < 0.95
    (two,) = instances(vote([cut((16, 16, 48, 48))], [cut((18, 18, 50, 50))]))
    assert iou(decode(two.mask), disc((17, 17, 49, 49))) > 0.95


def test_a_pixel_is_decided_by_the_greater_weight_and_a_tie_by_the_surer() -> None:
    box = (10, 10, 30, 30)
    left, right = disc(box).copy(), disc(box).copy()
    left[:, 20:], right[:, :20] = False, False

    def merged(*scores: tuple[Mask, float], weights: dict[str, float] | None = None) -> Mask:
        (only,) = instances(vote(*([cut(box, score, mask)] for mask, score in scores), weights=weights))
        assert only.box == box
        return decode(only.mask)

    assert (merged((left, 0.3), (left, 0.3), (right, 0.9)) == left).all()
    assert (merged((left, 0.3), (right, 0.9)) == right).all()
    assert (merged((left, 0.5), (right, 0.5)) == left).all()  # the first in catalogue order: no pixel has a majority
    assert (merged((left, 0.3), (right, 0.9), weights={"a": 2}) == left).all()
    assert (merged((left, 0.9), (disc(box), 0.8), (disc(box), 0.7), (left, 0.9)) == left).all()


def test_instance_of_a_single_model_stays_and_scores_by_its_weight() -> None:
    merged = vote([cut((10, 10, 30, 30))], [cut((12, 10, 32, 30)), cut((50, 20, 70, 50), 0.8, label="dog")])
    cat, dog = instances(merged)
    assert dog.mask == cut((50, 20, 70, 50)).mask and dog.score == pytest.approx(0.4)
    assert cat.score == pytest.approx(0.9) and merged.supporters == [["a", "b"], ["b"]]
    (alone,) = instances(
        vote([cut((10, 10, 30, 30))], [cut((12, 10, 32, 30))], [cut((50, 20, 70, 50))], method="consensus")
    )
    assert alone.label == "cat"


def test_deviation_is_the_distance_of_a_models_mask_to_the_merged_mask() -> None:
    box = (10, 10, 30, 30)
    half = disc(box).copy()
    half[:, 20:] = False
    merged = vote([cut(box)], [cut(box)], [cut(box, mask=half)])
    assert merged.deviations == pytest.approx({"a": 0, "b": 0, "c": 0.5})
    assert merged.agreement == pytest.approx(1 - 0.5 / 3)


def test_empty_masks_and_masks_of_another_image_are_no_stumbling_block() -> None:
    box, nothing = (10, 10, 30, 30), np.zeros((HEIGHT, WIDTH), bool)
    (merged,) = instances(vote([cut(box, 0.9, nothing)], [cut((11, 10, 31, 30), 0.3)]))
    assert area(merged.mask) > 0  # an instance without a pixel is none
    (empty,) = instances(vote([cut(box, mask=nothing)], [cut((11, 10, 31, 30), mask=nothing)]))
    assert area(empty.mask) == 0
    strange = LabelledMask(label="cat", box=(11, 10, 31, 30), score=0.5, mask=Rle(size=(20, 20), counts="`<"))
    result = vote([cut(box)], [strange], [cut(box)])
    assert instances(result)[0].mask.size == (HEIGHT, WIDTH) and result.deviations["b"] == 1


def test_model_with_the_mask_of_another_moves_no_boundary() -> None:
    """Shift the fused box by half a row: that must not draw a mask out over a row that neither model has."""
    body = disc((10, 10, 30, 30))
    first, other = cut((10, 10, 30, 30), 0.0, body), cut((10, 10.5, 30, 30.5), 0.0, body)  # type: ignore[arg-type]
    agreements = [vote([first], [other], *[[first]] * more).agreement for more in range(3)]
    assert agreements == sorted(agreements)
    (merged,) = instances(vote([first], [other], [first], [first]))
    assert (decode(merged.mask) == body).all()


def test_a_mask_that_lies_elsewhere_in_its_box_is_no_full_agreement() -> None:
    small = disc((12, 12, 20, 20))
    merged = vote([cut((10, 10, 30, 30), 0.9, small)], [cut((12, 12, 32, 32), 0.0, small)])
    assert merged.deviations["a"] == 0 and merged.deviations["b"] > 0.2


def test_pixels_that_no_majority_is_for_go_to_those_that_most_say() -> None:
    box = (10, 10, 30, 30)
    rows = [disc(box).copy() for _ in range(3)]
    for at, mask in enumerate(rows):
        mask[: 10 + 5 * at], mask[15 + 5 * at :] = False, False
    (merged,) = instances(vote(*([cut(box, 0.5, mask)] for mask in rows), weights={"b": 1.5}))
    assert (decode(merged.mask) == rows[1]).all()
    (merged,) = instances(vote(*([cut(box, score, mask)] for score, mask in zip((0.5, 0.5, 0.9), rows, strict=True))))
    assert (decode(merged.mask) == rows[2]).all()


def many(*masks: tuple[Mask, float]) -> Mask:
    """Return the merged mask of so many models, all in one box."""
    box = (0, 0, WIDTH, HEIGHT)
    replies = [
        Reply(model=f"m{at:02}", status="ok", result=SegmentResult(boxes=[cut(box, score, mask)]))
        for at, (mask, score) in enumerate(masks)
    ]
    (merged,) = instances(TASKS["segment"].methods["mask_vote"](replies, {}))
    return decode(merged.mask)


@pytest.mark.parametrize("count", [11, 13, 25, 64])
def test_every_model_has_a_vote_among_very_many(count: int) -> None:
    rng = np.random.default_rng(count)
    masks = [rng.random((HEIGHT, WIDTH)) < 0.5 for _ in range(count)]
    votes = sum(mask.astype(int) for mask in masks)
    merged = many(*((mask, 0.5) for mask in masks))
    assert (merged == (2 * votes > count)).all()


def test_large_masks_are_voted_on_coarsely(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merge more pixels than a merge may read: it votes on a grid, and the outcome is near and stays inside."""
    columns = [[cut((16, 16, 48, 48))], [cut((18, 18, 50, 50))], [cut((17, 18, 49, 50))]]
    fine = vote(*columns)
    monkeypatch.setattr(mask_vote, "FULL", 1000)
    monkeypatch.setattr(mask_vote, "SPARSE", 600)
    coarse = vote(*columns)
    (fine_mask,), (coarse_mask,) = instances(fine), instances(coarse)
    assert fine_mask.box == coarse_mask.box and 0.7 < iou(decode(fine_mask.mask), decode(coarse_mask.mask)) < 1
    assert coarse.agreement == pytest.approx(fine.agreement, abs=0.2)
    assert vote(*columns[:1] * 3).agreement == 1


def test_masks_at_the_edge_stay_inside() -> None:
    (merged,) = instances(vote([cut((60, 40, 80, 60))], [cut((62, 42, 80, 60))], [cut((61, 41, 80, 60))]))
    assert decode(merged.mask).shape == (HEIGHT, WIDTH) and area(merged.mask) > 200


def test_words_say_how_large_a_mask_is() -> None:
    result = SegmentResult(boxes=[cut((10, 10, 30, 30))])
    assert TASKS["segment"].as_text(result) == f"cat [10, 10, 30, 30], {int(disc((10, 10, 30, 30)).sum())} pixels"
    assert TASKS["segment"].as_text(SegmentResult(boxes=[])) == "nothing found"
