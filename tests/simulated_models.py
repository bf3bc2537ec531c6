"""Simulated models that see as well as a small one does, in any coordinate contract, and their planted faults."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from serve.checking.check import PIXELS, Ask, CheckAnswer
from serve.checking.questions import CheckQuestion
from serve.models.contracts import Contract, Size
from serve.models.probing import Pixels

NOISE = 0.015
"""The standard deviation of an edge, as a part of the picture's side."""

Move = Callable[[random.Random, Pixels, Size], Pixels]


def still(rng: random.Random, box: Pixels, size: Size) -> Pixels:
    return box


def shifted(x: float, y: float) -> Move:
    return lambda rng, box, size: (box[0] + x, box[1] + y, box[2] + x, box[3] + y)


def stretched(x: float, y: float) -> Move:
    return lambda rng, box, size: (box[0] * x, box[1] * y, box[2] * x, box[3] * y)


def around_the_middle(factor: float) -> Move:
    def move(rng: random.Random, box: Pixels, size: Size) -> Pixels:
        x0, y0, x1, y1 = ((edge - side / 2) * factor + side / 2 for edge, side in zip(box, size * 2, strict=True))
        return x0, y0, x1, y1

    return move


def scattered(distance: float) -> Move:
    """Move each box by the same distance, each in a direction of its own."""

    def move(rng: random.Random, box: Pixels, size: Size) -> Pixels:
        angle = rng.uniform(0, 2 * math.pi)
        return shifted(distance * math.cos(angle), distance * math.sin(angle))(rng, box, size)

    return move


def anywhere(rng: random.Random, box: Pixels, size: Size) -> Pixels:
    (width, height), side = size, rng.uniform(0.2, 0.4)
    x, y = rng.uniform(0, 1 - side), rng.uniform(0, 1 - side)
    return x * width, y * height, (x + side) * width, (y + side) * height


def middle(rng: random.Random, box: Pixels, size: Size) -> Pixels:
    return 0.3 * size[0], 0.3 * size[1], 0.7 * size[0], 0.7 * size[1]


@dataclass(frozen=True)
class SimulatedModel:
    """A model. writes: the contract of its replies. move: what happens to each box. cut: whether boxes end at the
    picture's edge. blind: it does not get the picture. A tenth of its boxes is missing, a twentieth is elsewhere, and a
    twentieth of its other answers is wrong."""

    writes: Contract
    move: Move = still
    cut: bool = True
    blind: bool = False

    def ask(self, seed: int) -> Ask:
        rng = random.Random(seed)

        async def ask(question: CheckQuestion) -> CheckAnswer:
            if question.task == "detect":
                return self._boxes(rng, question)
            text = "2" if self.blind else str(question.truth) if rng.random() < 0.95 else "perhaps"
            return CheckAnswer(text, text)

        return ask

    def _boxes(self, rng: random.Random, question: CheckQuestion) -> CheckAnswer:
        (label,), size, truth = question.fields["labels"], question.size, question.truth
        assert not isinstance(truth, str)
        noise = [rng.gauss(0, NOISE) * side for side in size * 2]
        x0, y0, x1, y1 = (edge + off for edge, off in zip(truth, noise, strict=True))
        move = (middle if self.blind else self.move) if rng.random() > 0.05 else anywhere
        box = move(rng, (x0, y0, x1, y1), size)
        if self.cut:
            box = (min(max(box[0], 0), size[0]), min(max(box[1], 0), size[1]),
                   min(max(box[2], 0), size[0]), min(max(box[3], 0), size[1]))  # fmt: skip
        shapes = [] if rng.random() < 0.1 else [(label, box)]
        return CheckAnswer(self.writes.format(shapes, size), PIXELS.format(shapes, size))


def swapped(contract: Contract) -> Contract:
    return replace(contract, order="yx" if contract.order == "xy" else "xy")
