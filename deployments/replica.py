"""One engine in one process: the workers of its model and its adapters, and what Serve wants to know about them."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence

from deployments.args import LoraArgs, ModelArgs, OwnArgs
from deployments.machine import stay_inside
from serve.engines.adapted import Adapted, Sharing
from serve.engines.adapters import Adapter
from serve.engines.base import Piece, Prompt, State
from serve.errors import ModelError
from serve.models.base import Model
from serve.models.own import lora
from serve.tasks.base import Delta, Reply, Request
from serve.worker import Status, Worker

log = logging.getLogger(__name__)


class Replica:
    """The engine starts in the background, so that the replica can say what it is doing, or why it failed.

    A model that cannot start stays up to say so, and the others serve on. An engine that dies after it was ready
    fails the health check: Serve then replaces this process, which brings the engine back. LoRA adapters speak from
    the same engine, each with a status of its own.
    """

    def __init__(self, args: ModelArgs | OwnArgs, adapters: Sequence[LoraArgs] = ()) -> None:
        stay_inside()
        base = args.model()
        loras = [lora(adapter, base) for adapter in adapters]
        engine = _engine(args, base, loras, self._progress)
        self.worker = Worker(base, engine)
        self.adapters = {model.name: Worker(model, Adapted(engine, model.name)) for model in loras}
        self.answering = 0
        self._starting = asyncio.get_running_loop().create_task(self._start())
        self._starting.add_done_callback(self._started)

    async def answer(self, task: str, request: Request, model: str) -> AsyncGenerator[Delta | Reply, None]:
        """Worker.answer of the base or an adapter, which is closed when the caller leaves."""
        with self._counted():
            async with contextlib.aclosing(self._worker(model).answer(task, request)) as events:
                async for event in events:
                    yield event

    async def speak(self, prompt: Prompt, model: str) -> AsyncGenerator[Piece, None]:
        """Worker.speak of the base or an adapter, which is closed when the caller leaves."""
        with self._counted():
            async with contextlib.aclosing(self._worker(model).speak(prompt)) as pieces:
                async for piece in pieces:
                    yield piece

    async def status(self, model: str) -> Status:
        """Where the base or an adapter stands; answered also while it starts."""
        return await self._worker(model).status()

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
                self._mark("starting", f"starting again: {error.message}")
                raise

    async def __del__(self) -> None:
        """Asked by Serve when it stops this replica: no process of the engine stays behind."""
        self._starting.cancel()
        await self.worker.engine.stop()

    def _worker(self, model: str) -> Worker:
        return self.adapters.get(model, self.worker)

    def _mark(self, state: State, step: str) -> None:
        """What befalls the engine befalls every model that speaks from it."""
        for worker in (self.worker, *self.adapters.values()):
            worker.mark(state, step)

    async def _start(self) -> None:
        await self.worker.start()
        status = await self.worker.status()
        for worker in self.adapters.values():
            if status.state == "failed":
                worker.mark("failed", f"Its base {status.model} could not be started: {status.step}")
            else:
                await worker.start()

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        self.answering += 1
        try:
            yield
        finally:
            self.answering -= 1

    def _progress(self, words: str) -> None:
        if words != "ready":  # the worker says that itself, once it is true
            self._mark("starting", words)

    def _started(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s did not start", self.worker.name, exc_info=error)
            self._mark("failed", f"It could not be started, by a fault of Diptych: {error!r}")


def _engine(
    args: ModelArgs | OwnArgs, model: Model, loras: Sequence[Model], progress: Callable[[str], None]
) -> Sharing:
    if args.simulate is not None:
        from serve.engines.fake import FakeEngine

        return FakeEngine(**args.simulate)
    from serve.engines.vllm import VllmEngine

    return VllmEngine(
        model.checkpoint.hub,
        revision=model.checkpoint.revision,
        gated=model.checkpoint.gated,
        expect=model.checkpoint.expect,
        engine=model.engine,
        deployment=args.engine,
        prefix_lm=model.prefix_lm,
        adapters=[Adapter(one.name, one.checkpoint.hub, one.checkpoint.revision) for one in loras],
        prepare=model.prepare,
        progress=progress,
    )
