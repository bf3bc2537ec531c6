"""The models that behave differently: a family's sizes share prompts and parsers, so tests of those run one of them."""

import dataclasses
import functools
from collections.abc import Hashable, Mapping
from types import FunctionType, MethodType
from typing import Any

from serve.models import MODELS
from serve.models.base import Model

BEHAVIOUR = (
    "skills", "converse", "prepare", "engine", "prefix_lm", "images", "videos", "ends", "reasoning", "chat",
)  # fmt: skip
"""The fields of a Model that prompts, parsers and replies depend on."""


def behaviour(value: Any) -> Hashable:
    """Return a value that is equal for equal data, and for functions of the same code with equal closures."""
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return (value.__code__, *map(behaviour, [value.__defaults__, value.__kwdefaults__, *cells]))
    if isinstance(value, MethodType):
        return behaviour(value.__func__), behaviour(value.__self__)
    if isinstance(value, functools.partial):
        return behaviour([value.func, value.args, value.keywords])
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return (type(value), *(behaviour(getattr(value, field.name)) for field in dataclasses.fields(value)))
    if isinstance(value, Mapping):
        return tuple((key, behaviour(item)) for key, item in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return (type(value), *map(behaviour, value))
    return value if isinstance(value, Hashable) else id(value)


@functools.cache
def distinct() -> list[Model]:
    """Return the first of each group of models that differ in their card, checkpoint or engine arguments alone."""
    firsts: dict[Hashable, Model] = {}
    for model in MODELS.values():
        firsts.setdefault(tuple(behaviour(getattr(model, field)) for field in BEHAVIOUR), model)
    return list(firsts.values())
