"""One of several running servers alone on the machine."""

import contextlib
import time
from collections.abc import Iterator, Sequence

from loadtest.sides import Refused, Side, answers

SETTLE_S = 30.0


@contextlib.contextmanager
def alone(side: Side, sides: Sequence[Side]) -> Iterator[None]:
    """The others are stopped where they stand, so that their idle work takes nothing from the one that is measured."""
    still = [other for other in sides if other not in (side, side.upstream)]
    for other in still:
        other.tree.hold(True)
    until = time.monotonic() + SETTLE_S
    good = 0
    while good < 8:  # it was stopped itself, and its parts find each other again
        good = good + 1 if answers(side) is None else 0
        if time.monotonic() > until:
            raise Refused(f"{side.name} answers no more; its log: {side.log}")
        if not good:
            time.sleep(0.2)
    try:
        yield
    finally:
        for other in still:
            other.tree.hold(False)
