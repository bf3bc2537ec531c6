"""One model in one process: a Worker, its engine, and what Serve wants to know about them."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Iterator

from deployments.args import ModelArgs
from deployments.machine import stay_inside
from serve.engines.base import Engine, Piece, Prompt
from serve.engines.config_check import kind
from serve.errors import ModelError
from serve.models import MODELS
from serve.tasks.base import Delta, Reply, Request
from serve.worker import Status, Worker

log = logging.getLogger(__name__)


class Replica:
    """The engine starts in the background, so that the replica can say what it is doing, or why it failed.

    A model that cannot start stays up to say so, and the others serve on. An engine that dies after it was ready
    fails the health check: Serve then replaces this process, which brings the engine back.
    """

    def __init__(self, args: ModelArgs) -> None:
        stay_inside()
        model = MODELS[args.name]
        self.worker = Worker(model, _engine(args, self._progress))
        self.answering = 0
        self._starting = asyncio.get_running_loop().create_task(self.worker.start())
        self._starting.add_done_callback(self._started)

    async def answer(self, task: str, request: Request) -> AsyncGenerator[Delta | Reply, None]:
        """Worker.answer, which is closed when the caller leaves."""
        with self._counted():
            async with contextlib.aclosing(self.worker.answer(task, request)) as events:
                async for event in events:
                    yield event

    async def speak(self, prompt: Prompt) -> AsyncGenerator[Piece, None]:
        """Worker.speak, which is closed when the caller leaves."""
        with self._counted():
            async with contextlib.aclosing(self.worker.speak(prompt)) as pieces:
                async for piece in pieces:
                    yield piece

    async def status(self) -> Status:
        """Where the model stands; answered also while it starts."""
        return await self.worker.status()

    async def busy(self) -> int:
        """How many answers are being spoken now."""
        return self.answering

    async def check_health(self) -> None:
        """Asked by Serve. Raises when an engine that was ready is dead."""
        status = await self.worker.status()
        if self._starting.done() and status.state != "failed":
            try:
                await self.worker.engine.check()
            except ModelError as error:
                self.worker.mark("starting", f"starting again: {error.message}")
                raise

    async def __del__(self) -> None:
        """Asked by Serve when it stops this replica: no process of the engine stays behind."""
        self._starting.cancel()
        await self.worker.engine.stop()

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        self.answering += 1
        try:
            yield
        finally:
            self.answering -= 1

    def _progress(self, words: str) -> None:
        if words != "ready":  # the worker says that itself, once it is true
            self.worker.mark("starting", words)

    def _started(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s did not start", self.worker.name, exc_info=error)
            self.worker.mark("failed", f"It could not be started, by a fault of Diptych: {error!r}")


def _engine(args: ModelArgs, progress: Callable[[str], None]) -> Engine:
    model = MODELS[args.name]
    if args.simulate is not None:
        from serve.engines.fake import FakeEngine

        return FakeEngine(**args.simulate)
    from serve.engines.vllm import VllmEngine

    return VllmEngine(
        args.checkpoint or model.checkpoint.hub,
        revision=args.revision or (None if args.checkpoint else model.checkpoint.revision),
        gated=model.checkpoint.gated and args.checkpoint is None,
        expect=kind(model.checkpoint.expect) if args.checkpoint else model.checkpoint.expect,
        engine=model.engine,
        deployment=args.engine,
        prefix_lm=model.prefix_lm,
        prepare=model.prepare,
        progress=progress,
    )
