"""Values of the load tests' options: each is checked before a server starts, and refused in a sentence."""

from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return a parser of whole numbers in these bounds, for argparse."""
    bounds = f"{least} or more" if most is None else f"{least} to {most}"

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least or (most is not None and int(text) > most):
            raise ArgumentTypeError(f"{text!r} is no whole number of {bounds}")
        return int(text)

    return parse


def positive(text: str) -> float:
    """Parse a number above 0, for argparse."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise ArgumentTypeError(f"{text!r} is no number above 0")
    return number


def word(*known: str) -> Callable[[str], str]:
    """Return a parser of one of these words, for argparse."""

    def parse(text: str) -> str:
        if text not in known:
            raise ArgumentTypeError(f"{text!r} is none of {', '.join(known)}")
        return text

    return parse


def several(parse: Callable[[str], T], *, none: bool = False) -> Callable[[str], list[T]]:
    """Return a parser of values with commas between them, for argparse. none: there may be none."""

    def parse_all(text: str) -> list[T]:
        values = [parse(part.strip()) for part in text.split(",") if part.strip()]
        if not values and not none:
            raise ArgumentTypeError("there has to be one value at least")
        return values

    return parse_all


def checkout(text: str) -> Path:
    """Parse the folder of another checkout of this repository, for argparse."""
    if not Path(text, "deployments").is_dir():
        raise ArgumentTypeError(f"{text!r} is no checkout of Diptych")
    return Path(text).absolute()
