"""The settings of an engine whose prompts are messages, which it writes with its checkpoint's own chat template."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serve.errors import ModelError


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

    def read_template(self) -> str | None:
        """Return the template that was given; None for the checkpoint's own. Raises ModelError where it is missing."""
        if self.template is None:
            return None
        try:
            return Path(self.template).expanduser().read_text(encoding="utf-8")
        except (OSError, ValueError):
            raise ModelError(
                f"The chat template {self.template} cannot be read.", code="chat_template_missing"
            ) from None
