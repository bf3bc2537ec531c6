"""An object that a model read from an image, and how alike two of them are."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Self

from pydantic import Field, PrivateAttr

from serve.tasks.reply import Result
from serve.tasks.request import Probability

NEAR = 1e-6
"""The relative difference up to which two numbers are equal."""


class ExtractResult(Result):
    """An object that satisfies the request's schema.

    field_agreement: of a merged one, by field (`/total`, `/items/0/price`), the share of the weight that gives it.
    """

    data: dict[str, Any]
    field_agreement: dict[str, Probability] = Field(default={}, exclude_if=lambda fields: not fields)
    _schema: str = PrivateAttr("")

    @classmethod
    def of(cls, value: dict[str, Any], schema: str, field_agreement: dict[str, float] | None = None) -> Self:
        """Return the result with its schema as JSON text, which the merge holds the merged object to."""
        result = cls(data=value, field_agreement=field_agreement or {})
        result._schema = schema
        return result

    @property
    def schema_text(self) -> str:
        """Return the schema; "" of a result that was read from a record."""
        return self._schema


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the path (a JSON pointer) and value of every scalar and every empty object or list."""
    if isinstance(value, dict | list) and value:
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, f"{path}/{str(name).replace('~', '~0').replace('/', '~1')}")
    else:
        yield path, value


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def folded(text: str) -> str:
    """Return a text as texts are compared: without case and surrounding space."""
    return text.strip().casefold()


def same_leaf(a: Any, b: Any) -> bool:
    """Return whether two leaves are equal: numbers nearly, texts but for case and surrounding space."""
    if is_number(a) and is_number(b):
        return math.isclose(a, b, rel_tol=NEAR)
    if isinstance(a, str) and isinstance(b, str):
        return folded(a) == folded(b)
    return type(a) is type(b) and bool(a == b)


def equal_leaves(a: Any, b: Any) -> tuple[int, int]:
    """Return how many leaves two values have alike, and how many either of them has."""
    return _equal_among(dict(leaves(a)), dict(leaves(b)))


def _equal_among(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> tuple[int, int]:
    alike = sum(path in theirs and same_leaf(leaf, theirs[path]) for path, leaf in ours.items())
    return alike, len(ours.keys() | theirs.keys())


def field_likeness(a: Any, b: Any) -> float:
    """Return the share of the leaves of either that are equal, 0..1."""
    return likeness_of_leaves(dict(leaves(a)), dict(leaves(b)))


def likeness_of_leaves(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> float:
    """Return the same for leaves by their paths."""
    alike, total = _equal_among(ours, theirs)
    return alike / total
