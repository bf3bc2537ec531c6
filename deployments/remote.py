"""The way to one model in another process: a Route over its engine's replicas. A LoRA adapter goes by its base's."""

import contextlib
from collections.abc import AsyncGenerator

from deployments.pool import Errand, Pool
from serve.engines.base import Piece, Prompt
from serve.models.base import Model
from serve.router.route import Status
from serve.tasks.base import Delta, Reply, Request

PACE_S = 0.045
"""Words that follow each other closer than this travel together, to the client as well: 22 updates a second."""
SLOW_PACE_S = 0.5
"""The same where nobody reads along, and only a cut reply would show them."""


class Remote:
    """One model's Route. Leaving early stops the replica's work."""

    def __init__(self, model: Model, pool: Pool) -> None:
        self.model = model
        self._pool = pool

    async def answer(self, task: str, request: Request) -> AsyncGenerator[Delta | Reply, None]:
        """The replica's events."""
        name, pace_s = self.model.name, PACE_S if request.stream else SLOW_PACE_S
        said = getattr(request, "question", None), tuple(getattr(request, "labels", ()))
        prompts = self.model.skills[task].prompts(request)
        errand = Errand(request.image.digest, request.priority == "batch", (task, *said), prompts)
        events = self._pool.stream(name, errand, "answer", task, request, name, pace_s=pace_s)
        async with contextlib.aclosing(events):
            async for event in events:
                yield event

    async def speak(self, prompt: Prompt) -> AsyncGenerator[Piece, None]:
        """The replica's pieces."""
        name = self.model.name
        errand = Errand(None if prompt.image is None else prompt.image.digest, prompt.batch, prompt.text)
        pieces = self._pool.stream(name, errand, "speak", prompt, name, pace_s=PACE_S)
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                yield piece

    async def status(self) -> Status:
        """What a replica said last."""
        return await self._pool.status(self.model.name)
