"""The settings of an engine whose prompts are messages, which it writes with its checkpoint's own chat template."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serve.errors import ModelError

MOST = 2**20
"""Bytes of a chat template; published ones have some thousand. A device has no size and no end."""
REFUSED = "chat_template_refused"
LONGEST = 16_384
"""The longest sequence of a chat model, in tokens, where the deployment sets no `max_model_len`: models are made for
262,144 today, and vLLM reserves room for a whole one."""


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
        """Return the template that was given; None for the checkpoint's own. Raises ModelError where there is none."""
        if self.template is None:
            return None
        file = Path(self.template).expanduser()
        try:
            if file.exists() and not (file.is_file() and file.stat().st_size <= MOST):
                message = f"The chat template {self.template} is no file of at most {MOST >> 20} MB."
                raise ModelError(message, code=REFUSED)
            return file.read_text(encoding="utf-8")
        except (OSError, ValueError):
            raise ModelError(
                f"The chat template {self.template} cannot be read.", code="chat_template_missing"
            ) from None
