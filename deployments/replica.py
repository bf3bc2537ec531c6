"""One engine in one process: the workers of its model and its adapters, and what Serve wants to know about them."""

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from deployments import autoscaling, logs
from deployments.address import LOOK_S, Address
from deployments.args import LoraArgs, ModelArgs, OwnArgs
from deployments.machine import stay_inside
from serve import tracing
from serve.engines.adapted import Adapted, Sharing
from serve.engines.adapters import Adapter
from serve.engines.base import Piece, Prompt, State
from serve.errors import ModelError
from serve.loop_lag import LoopLag
from serve.media.budget import Budget
from serve.models.base import Model
from serve.models.own import lora
from serve.reading import Reading
from serve.router.route import Status
from serve.rpc.server import Method, Server
from serve.tasks.base import Delta, Reply, Request
from serve.worker import Worker, joined

log = logging.getLogger(__name__)

LEAVE_S = LOOK_S + 1.0
"""Within which every gateway has looked for replicas once more, and has found the one that comes in its place."""


class Replica:
    """The engine starts in the background, so that the replica can say what it is doing, or why it failed.

    A model that cannot start stays up to say so, and the others serve on. An engine that dies after it was ready
    fails the health check: Serve then replaces this process, which brings the engine back. LoRA adapters speak from
    the same engine, each with a status of its own.
    """

    def __init__(self, args: ModelArgs | OwnArgs, adapters: Sequence[LoraArgs] = ()) -> None:
        stay_inside()
        logs.configure(args.name)
        tracing.start("diptych-model")
        self.drain_s = args.drain_s
        base = args.model()
        loras = [lora(adapter, base) for adapter in adapters]
        engine = _engine(args, base, loras, self._progress, Reading(Budget.of_one_of_many()))
        self.worker = Worker(base, engine)
        self.adapters = {model.name: Worker(model, Adapted(engine, model.name)) for model in loras}
        orphans = _orphans(base.name)
        self._lag = LoopLag(_loop_lag(base.name))
        self._lag.start()
        methods: dict[str, Method] = {"answer": self.answer, "speak": self.speak}
        self.server = Server(methods, self.standing, joined, orphans, simple=(Delta, Piece))
        self._listening: asyncio.Task[Address] | None = None
        self._starting = asyncio.get_running_loop().create_task(self._start())
        self._starting.add_done_callback(self._started)

    async def reconfigure(self, told: dict[str, Any]) -> None:
        """Asked by Serve before it counts as started, where it `wait`s: until its model is loaded.

        Raises ModelError when that fails: Serve then keeps what it had before, and gives up after some tries.
        """
        if told.get("wait"):
            await asyncio.shield(self._starting)
            status = await self.worker.status()
            if status.state == "failed":
                raise ModelError(f"{status.model} could not be started: {status.step}", code="model_failed")

    async def address(self) -> Address:
        """Where gateways reach it; asked through Ray, which vouches for both."""
        if self._listening is None:
            self._listening = asyncio.get_running_loop().create_task(self._listen())
        return await asyncio.shield(self._listening)

    def answer(self, task: str, request: Request, model: str) -> AsyncGenerator[Delta | Reply, None]:
        """Worker.answer of the base or an adapter."""
        return self._worker(model).answer(task, request)

    def speak(self, prompt: Prompt, model: str) -> AsyncGenerator[Piece, None]:
        """Worker.speak of the base or an adapter."""
        return self._worker(model).speak(prompt)

    async def standing(self) -> dict[str, Status]:
        """Where the base and each adapter stand; told also while it starts."""
        workers = [self.worker, *self.adapters.values()]
        return {worker.name: await worker.status() for worker in workers}

    async def busy(self) -> int:
        """How many answers are being spoken now."""
        return self.server.answering()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Asked by Serve where this model is autoscaled."""
        return {autoscaling.ONGOING: float(self.server.answering())}

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
        self._lag.stop()
        await self.server.drain(self.drain_s, LEAVE_S)
        await self.server.stop()
        await self.worker.engine.stop()

    async def _listen(self) -> Address:
        import ray.util

        host = ray.util.get_node_ip_address()
        return Address(host, await self.server.start(host), self.server.token)

    def _worker(self, model: str) -> Worker:
        if model == self.worker.name:
            return self.worker
        if model not in self.adapters:
            raise ModelError(f"{model} was added just now and is being started.", code="model_starting")
        return self.adapters[model]

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

    def _progress(self, words: str) -> None:
        if words != "ready":  # the worker says that itself, once it is true
            self._mark("starting", words)

    def _started(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s did not start", self.worker.name, exc_info=error)
            self._mark("failed", f"It could not be started, by a fault of Diptych: {error!r}")


def _engine(
    args: ModelArgs | OwnArgs, model: Model, loras: Sequence[Model], progress: Callable[[str], None], reader: Reading
) -> Sharing:
    if args.simulate is not None:
        from serve.engines.fake import FakeEngine

        return FakeEngine(**{"kept": 0, **args.simulate}, reader=reader)
    from serve.engines.vllm import VllmEngine

    return VllmEngine(
        model.checkpoint.hub,
        revision=model.checkpoint.revision,
        gated=model.checkpoint.gated,
        expect=model.checkpoint.expect,
        engine=model.engine,
        deployment={**_observed(args), **args.engine},
        prefix_lm=model.prefix_lm,
        adapters=[Adapter(one.name, one.checkpoint.hub, one.checkpoint.revision) for one in loras],
        prepare=model.prepare,
        progress=progress,
        stat_loggers=_through_ray if args.engine_metrics else None,
        reader=reader,
    )


def _observed(args: ModelArgs | OwnArgs) -> dict[str, Any]:
    """vLLM's arguments for who looks at it: under our name, and with its spans where ours go."""
    told: dict[str, Any] = {"served_model_name": args.name} if args.engine_metrics else {}
    if (endpoint := tracing.endpoint()) is not None:
        os.environ.setdefault("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")  # as ours; vLLM's default is gRPC
        told["otlp_traces_endpoint"] = endpoint
    return told


def _orphans(model: str) -> Callable[[int], None]:
    """Counts answers that nobody was left for. A gateway cannot: it is the one that is gone."""
    from ray.util.metrics import Counter

    about = "Answers that a model broke off because the gateway that had asked for them was gone."
    counter = Counter("diptych_orphans", about, tag_keys=("model",))
    return lambda streams: counter.inc(streams, {"model": model})


def _loop_lag(model: str) -> Callable[[float], None]:
    """Exports how long something held this process's event loop, at most, in the last minute."""
    from ray.util.metrics import Gauge

    about = "The longest time in the last minute for which something held a model's event loop."
    gauge = Gauge("diptych_event_loop_lag_seconds", about, tag_keys=("model",))
    return lambda seconds: gauge.set(seconds, {"model": model})


def _through_ray() -> list[Any]:
    """vLLM's counts as metrics of Ray's, which each node exports. There is no other way out of a replica's process."""
    from vllm.v1.metrics.ray_wrappers import RayPrometheusStatLogger

    return [RayPrometheusStatLogger]
