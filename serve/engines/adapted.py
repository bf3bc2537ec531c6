"""A LoRA adapter as an engine of its own, in front of the one that it shares with its base and its siblings."""

import dataclasses
from collections.abc import AsyncGenerator
from typing import Protocol

from serve.engines.base import Engine, Piece, Prompt


class Sharing(Engine, Protocol):
    """An engine that holds adapters beside its checkpoint."""

    async def adopt(self, adapter: str) -> None:
        """Raises ModelError when this adapter cannot speak; asked once the engine has started."""


class Adapted:
    """Speaks as one adapter. The base's own worker starts and stops what they share."""

    def __init__(self, engine: Sharing, adapter: str) -> None:
        self.engine, self.adapter = engine, adapter

    async def start(self) -> None:
        """Raises ModelError when the adapter cannot be used, or its base could not be started."""
        await self.engine.adopt(self.adapter)

    def generate(self, prompt: Prompt) -> AsyncGenerator[Piece, None]:
        """The base's engine, asked by this adapter's name."""
        return self.engine.generate(dataclasses.replace(prompt, adapter=self.adapter))

    async def check(self) -> None:
        """Raises ModelError when the shared engine is dead."""
        await self.engine.check()

    async def stop(self) -> None:
        """Nothing: the base speaks on."""
