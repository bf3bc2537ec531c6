"""The settings of an engine whose prompts are messages, which it writes with its checkpoint's own chat template."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ChatSettings:
    """Settings of a chat engine.

    template: a file with a chat template, in place of the checkpoint's. template_args: values of the template's
    variables; the one that turns reasoning on is False unless it is here. unused: regular expressions for names of
    tensors in the checkpoint that the operator knows to be unused.
    """

    template: str | None = None
    template_args: Mapping[str, Any] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
