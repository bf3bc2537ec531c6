"""Probing finds which contract replies follow. Planted faults, each twenty times, are in tests/checking."""

import functools
import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from serve.models.contracts import (
    DEEPSEEK_VL2,
    GEMMA4,
    INTERNVL,
    LFM2_VL,
    LLAVA,
    MISTRAL,
    PALIGEMMA,
    QWEN2_5_VL,
    QWEN3_VL,
    Contract,
    Size,
)
from serve.models.probing import (
    CAP,
    LEAST_BOXES,
    MAX_REPLIES,
    SAME,
    Pixels,
    ProbeAnswer,
    ProbeResult,
    Verdict,
    _Boxes,
    _distance,
    _labelled_boxes,
    candidates,
    probe,
)
from serve.toy.probe_scenes import ProbeScene, probe_scenes

SEEDS = range(20)
SOUND = [QWEN3_VL, QWEN2_5_VL, GEMMA4, PALIGEMMA, LLAVA, LFM2_VL, DEEPSEEK_VL2, INTERNVL, MISTRAL]
"""Scales 1000, pixels, 1000 with y first, 1023 with y first, 1 across the padded square, 1, 999, 1000, 999."""
NOISE = 0.015
"""The standard deviation of an edge, as a part of the picture's side."""

Move = Callable[[random.Random, Pixels, Size], Pixels]


def noisy(rng: random.Random, box: Pixels, size: Size) -> Pixels:
    x0, y0, x1, y1 = (edge + rng.gauss(0, NOISE) * side for edge, side in zip(box, size * 2, strict=True))
    return x0, y0, x1, y1


def cut(box: Pixels, size: Size) -> Pixels:
    x0, y0, x1, y1 = (min(max(edge, 0.0), float(side)) for edge, side in zip(box, size * 2, strict=True))
    return x0, y0, x1, y1


def forty_down(rng: random.Random, box: Pixels, size: Size) -> Pixels:
    x0, y0, x1, y1 = noisy(rng, box, size)
    return x0, y0 + 40, x1, y1 + 40


def anywhere(rng: random.Random, box: Pixels, size: Size) -> Pixels:
    del box
    (width, height), side = size, rng.uniform(0.2, 0.4)
    x, y = rng.uniform(0, 1 - side), rng.uniform(0, 1 - side)
    return x * width, y * height, (x + side) * width, (y + side) * height


@functools.cache
def scenes_of(seed: int) -> list[ProbeScene]:
    return probe_scenes(seed)


def answers(contract: Contract, seed: int, move: Move = noisy) -> list[ProbeAnswer]:
    """Return what a model would write in the contract: a fifth of the boxes is missing, a twentieth is elsewhere."""
    rng = random.Random(seed)
    replies = []
    for scene in scenes_of(seed):
        shapes = [
            (label, cut((anywhere if rng.random() < 0.05 else move)(rng, box, scene.size), scene.size))
            for label, box in scene.boxes
        ]
        groups = [[pair] for pair in shapes] if contract.style == "brackets" else [shapes]
        for group in groups:  # a contract without labels is asked about one object at a time
            labels = [label for label, _ in group]
            known = [pair for pair in scene.boxes if pair[0] in labels]
            kept = [pair for pair in group if rng.random() < 0.8]
            replies.append(ProbeAnswer(contract.format(kept, scene.size), scene.size, known))
    return replies


def meaning(contract: Contract | None) -> tuple[object, ...]:
    assert contract is not None
    return contract.order, contract.scale, contract.padded, contract.resized


@pytest.mark.slow
def test_small_shift_is_not_taken_for_another_scale() -> None:
    results = [probe(answers(QWEN3_VL, seed, forty_down), QWEN3_VL) for seed in SEEDS]
    assert [result.shift is not None for result in results] == [True] * 20
    assert all(result.shift == pytest.approx((0, 40), abs=8) for result in results)


@pytest.mark.parametrize("contract", SOUND, ids=lambda contract: contract.name)
def test_undeclared_contract_is_determined_from_replies(contract: Contract) -> None:
    results = [probe(answers(contract, seed, lambda rng, box, size: box)) for seed in range(2)]
    assert [result.verdict for result in results] == [Verdict.FITS] * 2
    for result in results:
        assert result.contract is not None
        placed = result.contract.parse(contract.format([("cat", (60, 80, 160, 200))], (300, 420)), (300, 420), ["cat"])
        assert placed.boxes[0].box == pytest.approx((60, 80, 160, 200), abs=4)


def test_other_scale_and_geometry_are_named() -> None:
    stretched = replace(LLAVA, padded=False)
    assert probe(answers(stretched, 0), LLAVA).reason == "numbers count across the picture, not the padded square."
    pixels = replace(QWEN3_VL, scale=None)
    assert probe(answers(pixels, 0), QWEN3_VL).reason == "pixels taken for 0 to 1000."
    both = replace(GEMMA4, order="xy", scale=1023)
    assert probe(answers(both, 0), GEMMA4).reason == "x and y are swapped, and 0 to 1023 taken for 0 to 1000."


def squares(side: int, contract: Contract) -> list[ProbeAnswer]:
    rng = random.Random(side)
    shapes = [("cat", anywhere(rng, (0, 0, 0, 0), (side, side))) for _ in range(20)]
    return [ProbeAnswer(contract.format([shape], (side, side)), (side, side), [shape]) for shape in shapes]


def test_square_pictures_leave_padding_undecided() -> None:
    result = probe([*squares(300, LLAVA), *squares(500, LLAVA)], LLAVA)
    assert result.verdict == Verdict.UNDECIDED and not result.usable
    assert [meaning(contract) for contract in result.alike] == [("xy", 1, False, None)]
    assert result.reason.startswith("Square pictures do not tell these apart: x before y, 0 to 1 across the padded")


def test_pictures_of_one_size_leave_pixels_and_thousandths_undecided() -> None:
    result = probe(squares(1000, QWEN3_VL), QWEN3_VL)
    assert result.verdict == Verdict.UNDECIDED and result.reason.startswith("Pictures of one size do not tell")
    assert ("xy", None, False, None) in [meaning(contract) for contract in result.alike]


@pytest.mark.parametrize("contract", SOUND, ids=lambda contract: contract.name)
@pytest.mark.slow
def test_probe_scenes_tell_all_candidates_apart(contract: Contract) -> None:
    for seed in range(3):
        scenes = scenes_of(seed)
        replies = [ProbeAnswer(contract.format([pair], scene.size), scene.size, [pair])
                   for scene in scenes for pair in scene.boxes]  # fmt: skip
        boxes = _labelled_boxes(replies, contract)
        assert isinstance(boxes, _Boxes) and len(boxes.written) >= 40
        tried = candidates(contract)
        assert len(tried) <= 20
        pairs = [(first, second) for first in tried for second in tried if first != second]
        assert min(_distance(first, second, boxes) for first, second in pairs) > SAME


def test_probe_scenes_are_the_same_for_a_seed() -> None:
    assert probe_scenes(3) == probe_scenes(3) != probe_scenes(4)
    assert len({scene.size for scene in probe_scenes(3)}) >= 8
    for scene in probe_scenes(3):
        assert scene.draw().size == scene.size
        labels = [label for label, _ in scene.boxes]
        assert len(labels) == len(set(labels))
        for _, (x0, y0, x1, y1) in scene.boxes:
            assert 0 <= x0 < x1 <= scene.size[0] and 0 <= y0 < y1 <= scene.size[1]


def silent(seed: int) -> list[ProbeAnswer]:
    return [replace(reply, text="I see no boxes here.") for reply in answers(QWEN3_VL, seed)]


def test_too_few_readable_replies_give_no_verdict() -> None:
    replies = answers(QWEN3_VL, 0)
    few = [*replies[:3], *silent(0)[3:]]
    for result in (probe(silent(0), QWEN3_VL), probe(silent(0)), probe(few, QWEN3_VL), probe([])):
        assert result.verdict == Verdict.TOO_FEW and result.contract is None and result.error is None
    assert probe(few, QWEN3_VL).reason.startswith("Only ") and probe(few, QWEN3_VL).read < LEAST_BOXES


def test_boxes_that_follow_no_contract_are_refused() -> None:
    def mirrored(rng: random.Random, box: Pixels, size: Size) -> Pixels:
        x0, y0, x1, y1 = noisy(rng, box, size)
        return size[0] - x1, y0, size[0] - x0, y1

    result: ProbeResult = probe(answers(QWEN3_VL, 0, mirrored), QWEN3_VL)
    assert result.verdict == Verdict.NONE_FITS and result.reason.startswith("No contract fits: ")


@pytest.mark.slow
def test_hostile_replies_cost_a_bounded_amount() -> None:
    boxes = probe_scenes(0)[0].boxes
    texts = ["[" * 100_000, '{"bbox_2d": [1e999, 2, 3, 4], "label": "cat"}' * 3000, "9" * 200_000, "<think>", ""]
    result = probe([ProbeAnswer(text, (300, 400), boxes) for text in texts], QWEN3_VL)
    assert (result.verdict, result.read) == (Verdict.TOO_FEW, 0)
    many = answers(QWEN3_VL, 0) * 20
    assert probe(many, QWEN3_VL).drawn == sum(len(reply.boxes) for reply in many[:MAX_REPLIES])
    assert CAP > SAME
