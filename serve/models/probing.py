"""Probing: find from a model's replies to pictures with known boxes which coordinate contract it follows.

    result = probe([ProbeAnswer(text, size, boxes), ...], declared=QWEN3_VL)
    result.verdict, result.reason    # "another_fits", "x and y are swapped."

Every candidate (order, scale, geometry) reads the same numbers; the one whose boxes lie nearest to the true ones fits.
`serve/toy/probe_scenes.py` draws pictures that tell the candidates apart; where other pictures do not, the result says
which candidates remain.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np

from serve.media.geometry import Array
from serve.models.contracts import CONTRACTS, Contract, Multiples, Size
from serve.tasks.boxes import AskedLabels, label_key

MAX_REPLIES = 64
"""The most replies that are read; later ones are left out."""
LEAST_BOXES = 12
LEAST_SHARE = 0.3
"""The fewest boxes that must be read, and the least part of those that were drawn."""
FITS = 0.06
"""The largest median error of a contract that fits. Boxes of another picture are off by 0.2 and more."""
CAP = 0.25
"""The largest error that counts: beyond it a box is wrong, however far."""
SAME = 0.005
"""Contracts that place the drawn boxes within this mean distance of each other are not told apart."""
DEVIATIONS = 4.0
"""The standard errors by which a contract must be worse than the best one to be refused."""
CORRELATED = 0.6
BY_CHANCE = 2.6
"""The least correlation of true and read positions in an answer that depends on the picture, and the standard errors
by which it must be above none, since a few boxes agree by chance."""
SHIFTED = 0.02
"""The least part of the picture's side by which boxes must be off for a shift to be named."""
STRETCHED = 0.08
"""The least part by which a side must be too long or too short for that to be named."""
MOST_STRETCHED = 3.0
"""The largest factor of a stretch. With a larger one most boxes lie outside, where all are alike."""
APART = 0.1
"""The least distance, as a part of the picture's side, of two edges that are compared for that."""

WITHOUT_PICTURE = "The answers do not depend on the picture."

Pixels = tuple[float, float, float, float]


class Verdict(StrEnum):
    """The outcome of a probe. FITS: no contract was declared, and one fits."""

    AGREES = "agrees"
    FITS = "fits"
    ANOTHER_FITS = "another_fits"
    UNDECIDED = "undecided"
    NONE_FITS = "none_fits"
    TOO_FEW = "too_few_replies"


class ProbeFault(StrEnum):
    """A fault of the boxes in replies."""

    AXES_SWAPPED = "axes_swapped"
    OTHER_SCALE = "other_scale"
    OTHER_AREA = "other_area"
    SHIFTED = "shifted"
    STRETCHED = "stretched"
    WITHOUT_PICTURE = "without_picture"


@dataclass(frozen=True)
class ProbeAnswer:
    """A model's answer about a picture of that size. boxes: the true label and box (x0, y0, x1, y1 in pixels) of each
    object that was asked for, each label once."""

    text: str
    size: Size
    boxes: Sequence[tuple[str, Pixels]]


@dataclass(frozen=True)
class ProbeResult:
    """A probe's outcome.

    reason: one or more sentences for people. contract: the one that fits best, None where none was tried. error: the
    median error of its boxes: the mean distance of the four edges as a part of the picture's side. margin: the mean
    error of the runner-up less that of the contract; below 0 where the runner-up is better by no more than chance.
    read, drawn: numbers of boxes. shift: by which every box is off to the right and down, in pixels. stretch: by which
    every x and y is multiplied. alike: contracts that these pictures do not tell from it, though others would.
    """

    verdict: Verdict
    reason: str
    read: int
    drawn: int
    contract: Contract | None = None
    error: float | None = None
    runner_up: Contract | None = None
    margin: float | None = None
    shift: tuple[float, float] | None = None
    stretch: tuple[float, float] | None = None
    faults: tuple[ProbeFault, ...] = ()
    alike: tuple[Contract, ...] = ()

    @property
    def usable(self) -> bool:
        """Return whether boxes may be shown as `contract` reads them."""
        return self.verdict in (Verdict.AGREES, Verdict.FITS)


@dataclass(frozen=True)
class _Boxes:
    """Boxes as written, [n, 4], with the true ones as parts of the picture, [n, 4], and its sizes, [n, 2]."""

    written: Array
    true: Array
    sizes: np.ndarray[Any, np.dtype[np.int64]]


def candidates(declared: Contract) -> list[Contract]:
    """Return the contracts that are tried, the declared one first, each with its style and another meaning."""
    thousand = declared.scale if declared.scale in (999, 1000) else 999.0
    base = replace(declared, resized=None, padded=False)
    others = [replace(base, scale=scale) for scale in (1.0, 100.0, thousand, 1023.0)]
    others += [replace(base, scale=scale, padded=True) for scale in (1.0, thousand)]
    others += [replace(base, scale=None), replace(base, scale=None, resized=Multiples(28, 56 * 56, 12_845_056))]
    if declared.resized is not None:
        others = [other for other in others if other.resized is None]
    tried: dict[Any, Contract] = {}
    for contract in (declared, *others):
        for order in (declared.order, "yx" if declared.order == "xy" else "xy"):
            meaning = (contract.scale, contract.resized, contract.padded, order)
            tried.setdefault(meaning, contract if order == contract.order else replace(contract, order=order))
    return list(tried.values())


def probe(replies: Sequence[ProbeAnswer], declared: Contract | None = None) -> ProbeResult:
    """Find the contract that a model's replies follow. declared: the one that it should follow, if any.

    The cost is bounded: `MAX_REPLIES` replies, each read once in every style of CONTRACTS where none is declared, and
    as many boxes as were drawn, placed by each of at most twenty candidates.
    """
    replies = replies[:MAX_REPLIES]
    drawn = sum(len(reply.boxes) for reply in replies)
    reader, boxes = _read(replies, declared)
    read = len(boxes.written)
    if read < max(LEAST_BOXES, LEAST_SHARE * drawn):
        reason = f"Only {read} of {drawn} boxes can be read in the replies, too few for a verdict."
        return ProbeResult(Verdict.TOO_FEW, reason, read, drawn)
    tried = candidates(reader)
    placed = {contract: _placed(contract, boxes) for contract in tried}
    errors = {contract: _errors(placed[contract], boxes.true) for contract in tried}
    scores = {contract: float(np.minimum(error, CAP).mean()) for contract, error in errors.items()}
    ranked = sorted(tried, key=scores.__getitem__)  # the declared one is first among equals
    best = ranked[0]
    if declared is not None:  # of those that fit alike but for chance, the one that differs least from it
        equals = [contract for contract in ranked if not _worse(errors[contract], errors[best])]
        best = min(equals, key=lambda contract: (len(_differences(declared, contract)), contract.resized is not None))
    alike = tuple(other for other in tried if other != best and _distance(best, other, boxes) < SAME)
    rival = next((other for other in ranked if other != best and other not in alike), None)
    result = ProbeResult(
        Verdict.NONE_FITS,
        "",
        read,
        drawn,
        best,
        float(np.median(errors[best])),
        rival,
        None if rival is None else scores[rival] - scores[best],
        alike=alike,
    )
    if not _depends(list(placed.values()), boxes):
        return replace(result, reason=WITHOUT_PICTURE, faults=(ProbeFault.WITHOUT_PICTURE,))
    movable = placed if declared is None else {declared: placed[declared]}
    shifted = _shifted(movable, boxes, errors[best])
    single = best if declared is None else declared  # stretched far enough, every contract fits
    stretched = _stretched(single, placed[single], boxes, errors[best] if shifted is None else shifted[2])
    if stretched is not None:
        contract, (across, down), left = stretched
        reason, error = f"Every box is stretched: x by {across:.2f}, y by {down:.2f}.", float(np.median(left))
        faults = (ProbeFault.STRETCHED,)
        return replace(result, contract=contract, error=error, reason=reason, stretch=(across, down), faults=faults)
    if shifted is not None:
        contract, (dx, dy), left = shifted
        reason, error = f"Every box is off by ({dx:.0f}, {dy:.0f}) pixels.", float(np.median(left))
        faults = (ProbeFault.SHIFTED,)
        return replace(result, contract=contract, error=error, reason=reason, shift=(dx, dy), faults=faults)
    assert result.error is not None
    if result.error > FITS:
        reason = f"No contract fits: by the best ({best.form}), boxes are off by {result.error:.0%} of the picture."
        return replace(result, reason=reason)
    if alike:
        reason = f"{_sameness(boxes)} do not tell these apart: {'; '.join(map(meaning, (best, *alike)))}."
        return replace(result, verdict=Verdict.UNDECIDED, reason=reason)
    if declared is None:
        return replace(result, verdict=Verdict.FITS, reason=f"The replies fit {meaning(best)}.")
    if best == declared:
        return replace(result, verdict=Verdict.AGREES, reason=f"The replies fit the contract, {meaning(best)}.")
    differences = _differences(declared, best)
    reason = f"{', and '.join(differences.values())}."
    return replace(result, verdict=Verdict.ANOTHER_FITS, reason=reason, faults=tuple(differences))


def _read(replies: Sequence[ProbeAnswer], declared: Contract | None) -> tuple[Contract, _Boxes]:
    """Return the boxes with the contract in whose style most of them can be read, by its own marks if several can."""
    if declared is not None:
        return declared, _labelled_boxes(replies, declared)
    styles: dict[Any, Contract] = {}
    for contract in CONTRACTS.values():
        if contract.shape == "box":
            read_as = replace(contract, name="probed", scale=1000, order="xy", resized=None, padded=False)
            styles.setdefault((contract.style, contract.tags, contract.location), read_as)
    last = sorted(styles.values(), key=lambda contract: contract.style == "brackets")  # others have brackets, too
    read = [(contract, _labelled_boxes(replies, contract)) for contract in last]
    texts = [reply.text for reply in replies if re.search(r"\d", reply.text)]
    return max(read, key=lambda pair: (len(pair[1].written), sum(_mark(pair[0]) in text for text in texts)))


def _mark(contract: Contract) -> str:
    """Return a text that stands in each reply of a contract's style, where it holds a box."""
    if contract.style == "tags" and contract.tags is not None:
        return contract.tags.numbers[0]
    return {"json": "{", "brackets": "["}.get(contract.style, contract.location.partition("{")[0])


def _labelled_boxes(replies: Sequence[ProbeAnswer], contract: Contract) -> _Boxes:
    """Return the first box that a reply has for each label that was asked for."""
    written, true, sizes = [], [], []
    for reply in replies:
        wanted = {label_key(label): box for label, box in reply.boxes}
        labels = AskedLabels([label for label, _ in reply.boxes])
        width, height = reply.size
        for text, numbers in contract.written(reply.text):
            if len(numbers) != 4 or not np.isfinite(numbers).all():
                continue
            label = labels.find(text) if text else reply.boxes[0][0] if len(reply.boxes) == 1 else None
            box = wanted.pop(label_key(label), None) if label is not None else None
            if box is not None:
                written.append(numbers)
                true.append(np.array(box) / (width, height, width, height))
                sizes.append(reply.size)
    return _Boxes(np.array(written).reshape(-1, 4), np.array(true).reshape(-1, 4), np.array(sizes, int).reshape(-1, 2))


def _placed(contract: Contract, boxes: _Boxes) -> Array:
    """Convert the written numbers to x0, y0, x1, y1 as parts of the picture, [n, 4], corners in order, not clipped."""
    frames = _frames(contract, boxes)
    numbers = boxes.written if contract.order == "xy" else boxes.written[:, [1, 0, 3, 2]]
    placed = (numbers * frames[:, :4] + frames[:, 4:]).reshape(-1, 2, 2)
    ordered: Array = np.concatenate([placed.min(axis=1), placed.max(axis=1)], axis=1)
    return ordered


def _frames(contract: Contract, boxes: _Boxes) -> Array:
    """Return for each box the factors and the summands that make parts of the picture of its four numbers, [n, 8]."""
    sizes, which = np.unique(boxes.sizes, axis=0, return_inverse=True)
    rows: list[list[float]] = []
    for width, height in sizes.tolist():
        frame = contract.frame((width, height))
        factors = [frame.width / frame.across / width, frame.height / frame.down / height]
        starts = [frame.left / width, frame.top / height]
        rows.append([*factors, *factors, *starts, *starts])
    frames: Array = np.array(rows)[which.reshape(-1)]
    return frames


def _errors(placed: Array, true: Array) -> Array:
    """Compute the mean distance of a box's edges from the true ones after clipping to the picture, [n]."""
    errors: Array = np.abs(np.clip(placed, -1, 2) - true).mean(axis=1)
    return errors


def _worse(errors: Array, best: Array) -> bool:
    """Return whether one contract's errors are larger than another's on the same boxes, by more than chance."""
    excess = np.minimum(errors, CAP) - np.minimum(best, CAP)
    return bool(excess.mean() > DEVIATIONS * excess.std() / np.sqrt(len(excess)))


def _distance(contract: Contract, other: Contract, boxes: _Boxes) -> float:
    """Compute how far apart, as a mean part of the picture, two contracts place what one writes of the true boxes.

    Contracts that are the same for every picture, but for a thousandth, have the distance 1.
    """
    if {contract.scale, other.scale} == {999, 1000} and (contract.order, contract.padded) == (
        other.order,
        other.padded,
    ):
        return 1.0
    frames = _frames(contract, boxes)
    numbers = (boxes.true - frames[:, 4:]) / frames[:, :4]
    if contract.order == "yx":
        numbers = numbers[:, [1, 0, 3, 2]]
    return float(_errors(_placed(other, replace(boxes, written=numbers)), boxes.true).mean())


def _depends(readings: Sequence[Array], boxes: _Boxes) -> bool:
    """Return whether the boxes' centres, as any contract reads them, go with the true ones."""
    true = _centres(boxes.true)
    least = max(CORRELATED, BY_CHANCE / math.sqrt(len(true) - 1))
    return any(
        _correlation(_centres(placed)[:, axis], true[:, axis]) >= least for placed in readings for axis in (0, 1)
    )


def _centres(boxes: Array) -> Array:
    centres: Array = (boxes[:, :2] + boxes[:, 2:]) / 2
    return centres


def _correlation(a: Array, b: Array) -> float:
    """Compute the rank correlation: a few numbers that are far off count no more than others."""
    first, second = (np.argsort(np.argsort(values)) - (len(values) - 1) / 2 for values in (a, b))
    return float((first * second).sum() / (first * first).sum())


def _shifted(
    readings: Mapping[Contract, Array], boxes: _Boxes, unmoved: Array
) -> tuple[Contract, tuple[float, float], Array] | None:
    """Return a contract that fits once all boxes are moved by one distance, the distance in pixels, and the errors
    that remain. None where no shift is better, by more than chance, than the errors `unmoved`.

    A shifted box may have been cut at the picture's edge: the distance is that of the edges inside.
    """
    sides = np.concatenate([boxes.sizes, boxes.sizes], axis=1).astype(float)
    for contract, placed in readings.items():
        inside = (placed > SAME) & (placed < 1 - SAME)
        away = (placed - boxes.true) * sides
        across, down = (away[:, axis::2][inside[:, axis::2]] for axis in (0, 1))
        if min(len(across), len(down)) < LEAST_BOXES:
            continue
        dx, dy = float(np.median(across)), float(np.median(down))
        expected = np.clip(boxes.true + np.array([dx, dy, dx, dy]) / sides, 0, 1)
        errors = _errors(np.clip(placed, 0, 1), expected)
        length = float(np.median(np.abs([dx, dy]).max() / boxes.sizes.min(axis=1)))
        if length > SHIFTED and np.median(errors) <= FITS and _worse(unmoved, errors):
            return contract, (dx, dy), errors
    return None


def _stretched(
    contract: Contract, placed: Array, boxes: _Boxes, unmoved: Array
) -> tuple[Contract, tuple[float, float], Array] | None:
    """Return the contract, where it fits once every x and every y is divided by one factor, and the errors that remain.

    As `_shifted`; a difference below SAME is no stretch. A factor is the median slope between pairs of edges (Theil and
    Sen), which a few boxes elsewhere do not change.
    """
    inside = (placed > SAME) & ((placed < 1 - SAME) | (placed > 1 + SAME))
    slopes, starts = [], []
    for axis in (0, 1):
        read, true = (edges[:, axis::2][inside[:, axis::2]] for edges in (placed, boxes.true))
        first, second = np.triu_indices(len(read), 1)
        apart = np.abs(true[first] - true[second]) > APART
        if len(read) < LEAST_BOXES or not apart.any():
            return None
        rises = read[first][apart] - read[second][apart]
        slopes.append(float(np.median(rises / (true[first][apart] - true[second][apart]))))
        starts.append(float(np.median(read - slopes[axis] * true)))
    if min(slopes) <= 0 or max(slopes) > MOST_STRETCHED or max(abs(slope - 1) for slope in slopes) < STRETCHED:
        return None
    expected = np.clip(boxes.true * np.array(slopes * 2) + np.array(starts * 2), 0, 1)
    errors = _errors(np.clip(placed, 0, 1), expected)
    gain = float(np.minimum(unmoved, CAP).mean() - np.minimum(errors, CAP).mean())
    fits = np.median(errors) <= FITS and gain > SAME and _worse(unmoved, errors)
    return (contract, (slopes[0], slopes[1]), errors) if fits else None


def meaning(contract: Contract) -> str:
    """Describe a contract's order, scale and geometry."""
    return f"{'y before x' if contract.order == 'yx' else 'x before y'}, {_unit(contract)}{_across(contract)}"


def _unit(contract: Contract) -> str:
    if contract.scale is not None:
        return f"0 to {contract.scale:g}"
    return "pixels" if contract.resized is None else "pixels of the resized picture"


def _across(contract: Contract) -> str:
    return " across the padded square" if contract.padded else ""


def _differences(declared: Contract, fitting: Contract) -> dict[ProbeFault, str]:
    """Name and describe what the replies do other than declared."""
    parts = {}
    if fitting.order != declared.order:
        parts[ProbeFault.AXES_SWAPPED] = "x and y are swapped"
    if (fitting.scale, fitting.resized) != (declared.scale, declared.resized):
        parts[ProbeFault.OTHER_SCALE] = f"{_unit(fitting)} taken for {_unit(declared)}"
    if fitting.padded != declared.padded:
        area, other = ("padded square", "picture") if fitting.padded else ("picture", "padded square")
        parts[ProbeFault.OTHER_AREA] = f"numbers count across the {area}, not the {other}"
    return parts


def _sameness(boxes: _Boxes) -> str:
    """Describe the pictures, as the cause that contracts look alike on them."""
    sizes = {(width, height) for width, height in boxes.sizes.tolist()}
    if len(sizes) == 1:
        return "Pictures of one size"
    return "Square pictures" if all(width == height for width, height in sizes) else "These pictures"
