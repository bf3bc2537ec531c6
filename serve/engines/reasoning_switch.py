"""Find how a chat template turns reasoning on and off: by what it writes with each value of its variables."""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serve.engines.base import ReasoningOptions
from serve.engines.chat_templates import CHAT_TEMPLATES, TemplateFault
from serve.errors import ModelError

SWITCHES = ("enable_thinking", "thinking", "reasoning")
"""Variables that are true or false: of most templates; of DeepSeek's and Granite's; of Cohere's."""
EFFORT = "reasoning_effort"
EFFORTS = ("minimal", "low", "medium", "high", "xhigh", "max")
NONE = "none"
QUOTED_NONE = re.compile("['\"]none['\"]")


@dataclass(frozen=True)
class ReasoningSwitch:
    """The variables by which a chat template follows a request's wishes for reasoning.

    name: that which turns it on and off; None: none does. efforts: the values of `reasoning_effort` that it takes and
    that mean that it reasons; none where it has no such variable.
    """

    name: str | None = None
    efforts: tuple[str, ...] = ()

    def values(self, wishes: ReasoningOptions) -> dict[str, Any]:
        """Return the values of the template's variables for a prompt; what it has no variable for is left out."""
        effort = {EFFORT: wishes.effort} if wishes.effort in self.efforts else {}
        if self.name is None or wishes.on is None:
            return effort
        if self.name == EFFORT:
            return {EFFORT: NONE} if not wishes.on else effort or {EFFORT: self._default_effort()}
        return {self.name: wishes.on, **effort}

    def _default_effort(self) -> str:
        return "high" if "high" in self.efforts else self.efforts[-1]


@functools.lru_cache(32)
def reasoning_switch(template: str | None) -> ReasoningSwitch:
    """Return the switch of a chat template. One that cannot be parsed, or takes too much, has none."""
    try:
        return _find_switch(template or "")
    except (TemplateFault, ModelError):
        return ReasoningSwitch()


def _find_switch(template: str) -> ReasoningSwitch:
    variables, write = CHAT_TEMPLATES.variables(template), functools.partial(_write, template)
    name = None
    for each in SWITCHES:
        if each in variables:
            on, off = write({each: True}), write({each: False})
            if on is None or on != off:  # what cannot be written here is taken by its name
                name = each
                break
    efforts: tuple[str, ...] = ()
    if EFFORT in variables:
        base = {} if name is None else {name: True}
        written = {effort: write({**base, EFFORT: effort}) for effort in EFFORTS}
        efforts = tuple(effort for effort, text in written.items() if text is not None)
        without = write({**base, EFFORT: NONE})
        # others write any word that they are given
        if name is None and efforts and QUOTED_NONE.search(template) and without not in (None, written[efforts[-1]]):
            name = EFFORT
    return ReasoningSwitch(name, efforts)


def _write(template: str, values: Mapping[str, Any]) -> str | None:
    """Return a short conversation with values of a template's variables; None where the template fails."""
    for shape in ([{"type": "image"}, {"type": "text", "text": "a"}], "a"):
        messages = [{"role": "user", "content": shape}]
        try:
            return CHAT_TEMPLATES.write(template, {"messages": messages, "add_generation_prompt": True, **values})
        except TemplateFault:
            continue
    return None
