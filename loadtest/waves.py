"""How many users there are as a run goes on. Knows no locust."""

from collections.abc import Callable

STEPS = 5
RISE = 0.1


def steps(over: float) -> float:
    """A fifth of the users, two fifths, ...: where does it bend?"""
    return (min(int(over * STEPS), STEPS - 1) + 1) / STEPS


def spike(over: float) -> float:
    """A fifth of the users; all of them at once for the middle fifth; a fifth again: does it recover?"""
    return 1.0 if 0.4 <= over < 0.6 else 0.2


def soak(over: float) -> float:
    """Rises for a tenth of the time, then stays, for hours if wanted: does anything creep?"""
    return min(1.0, over / RISE)


WAVES: dict[str, Callable[[float], float]] = {"steps": steps, "spike": spike, "soak": soak}
"""Each gives the share of the users, for the share of the time that is over (both 0..1)."""
