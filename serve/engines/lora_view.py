"""A LoRA adapter as an Engine, in front of the engine that it shares with its base and other adapters."""

import dataclasses
from collections.abc import AsyncGenerator
from typing import Protocol

from serve.engines.adapters import Adapter
from serve.engines.base import Engine, Memory, Piece, Prompt, ToolReader, Tools


class LoraEngine(Engine, Protocol):
    """An engine that serves LoRA adapters beside its checkpoint. memory: None until it runs, and for a fake one."""

    memory: Memory | None

    async def check_adapter(self, adapter: str) -> None:
        """Raise ModelError when this adapter cannot be used. Call it once the engine has started."""

    async def add_adapter(self, adapter: Adapter) -> str:
        """Load an adapter while the engine runs. Return its name in prompts, which no other one has had.

        Raises ModelError where it cannot be used; then nothing of it is left.
        """

    async def remove_adapter(self, name: str) -> None:
        """Unload an adapter by its name in prompts. No request with it may run."""

    async def sleep(self) -> None:
        """Free the memory that other engines need, until `wake`. No request may run. Raises ModelError."""

    async def wake(self) -> None:
        """Make the engine usable again after `sleep`. Raises ModelError."""


class LoraView:
    """An engine that generates with one adapter. The base's worker starts and stops the shared engine."""

    def __init__(self, engine: LoraEngine, adapter: str) -> None:
        self.engine, self.adapter = engine, adapter

    async def start(self) -> None:
        """Raise ModelError when the adapter cannot be used, or its base could not be started."""
        await self.engine.check_adapter(self.adapter)

    def generate(self, prompt: Prompt) -> AsyncGenerator[Piece, None]:
        """Generate a reply with this adapter on the shared engine."""
        return self.engine.generate(dataclasses.replace(prompt, adapter=self.adapter))

    def tool_reader(self, tools: Tools, whole: bool) -> ToolReader:
        """Return the shared engine's reader of calls in a reply."""
        reader: ToolReader = self.engine.tool_reader(tools, whole)  # type: ignore[attr-defined]
        return reader

    async def check(self) -> None:
        """Raise ModelError when the shared engine is dead."""
        await self.engine.check()

    async def stop(self) -> None:
        """Do nothing: the base goes on using the shared engine."""
