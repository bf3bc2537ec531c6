"""A replica: a process with one engine, and the workers of its model and its LoRA adapters."""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from deployments import autoscaling, logs
from deployments.adapters.holder import AdapterHolder
from deployments.adapters.state import HOLD, WantedAdapters
from deployments.args import EngineArgs, LoraArgs
from deployments.group_scheduler import SCHEDULER
from deployments.groups.member import Link, Member, again
from deployments.local.machine import bind_to_loopback
from deployments.routing import tls
from deployments.routing.discovery import ServeDiscovery
from deployments.routing.replicas import REFRESH_S, Address, Replicas
from serve import tracing
from serve.api.loop_lag import EVERY_S, LoopLag, freeze_heap
from serve.checking.at_load import check_at_load
from serve.engines.adapters import Adapter
from serve.engines.base import Piece, Prompt, State
from serve.engines.energy import meter_of_own_gpus
from serve.engines.lora_view import LoraEngine, LoraView
from serve.errors import ModelError
from serve.media.budget import Budget
from serve.media.decoding import MediaDecoder
from serve.models import own
from serve.models.base import Model
from serve.router.route import Status
from serve.tasks.reply import Delta, Reply, Waiting
from serve.tasks.request import Request
from serve.transport.server import Method, StreamServer
from serve.worker import Worker, joined

log = logging.getLogger(__name__)

LEAVE_S = REFRESH_S + 1.0
"""Seconds within which every gateway searches again and finds the replica that replaces this one."""
OTHERS_S = 3.0
"""Seconds between two looks whether another replica answers while this one is loading."""

LOADING = "DIPTYCH_LOADING"
"""Environment variable: a folder with a file for each process that loads a model, named by its id (k8s/base)."""


class GroupPlace(NamedTuple):
    """The facts about its group that a replica needs. sleepers: models that sleep while as many as may are awake."""

    name: str
    sleep_level: int
    max_running: int
    sleepers: int


class Replica:
    """A process that loads its engine in the background, and reports its progress or why it failed.

    Where a model cannot be loaded, the process stays up to report why, and tries again. An engine that dies
    after it was ready fails the health check: Serve then replaces this process, which brings the engine back. LoRA
    adapters generate with the same engine, each with a status of its own. A model of a group loads when it has its
    turn, and then sleeps and wakes with the others (deployments/groups); its requests wait here.
    """

    def __init__(
        self,
        args: EngineArgs,
        adapters: Sequence[LoraArgs] = (),
        place: GroupPlace | None = None,
    ) -> None:
        self._loading_file = loading_file()
        bind_to_loopback()
        logs.configure(args.name)
        tracing.start("diptych-model")
        self.drain_s = args.drain_s
        base = args.model()
        loras = [own.lora(adapter, base) for adapter in adapters]
        self._engine = engine = create_engine(
            args, base, loras, self._progress, MediaDecoder(Budget.of_replica()), place
        )
        apart = place is None and not args.spans_nodes
        meter = meter_of_own_gpus(args.num_gpus, shared=not apart) if args.simulate is None else None
        self._metering = None if meter is None else asyncio.get_running_loop().create_task(meter.watch())
        self.worker = Worker(base, engine, check=check_at_load(args) if args.check else None, meter=meter)
        self.adapters = {
            model.name: Worker(
                model,
                LoraView(engine, model.name),
                check=check_at_load(adapter, args) if adapter.check else None,
                meter=meter,
            )
            for model, adapter in zip(loras, adapters, strict=True)
        }
        self._further_adapters = AdapterHolder(base, engine, self.adapters, args.max_loras, meter)
        on_abandoned = _count_abandoned(base.name)
        self._lag = LoopLag(_loop_lag(base.name))
        self._lag.start()
        methods: dict[str, Method] = {"answer": self.answer, "speak": self.speak, HOLD: self.hold_adapters}
        self.server = StreamServer(methods, self.statuses, joined, on_abandoned, simple=(Delta, Piece, Waiting))
        self._listening: asyncio.Task[Address] | None = None
        self._member: Member | None = None
        self._tried, self._counted = asyncio.Event(), False
        self._why: str | None = None
        """Why the last try to load the model failed."""
        self._retries = args.retries()
        if place is not None:
            from deployments import serve_status

            scheduler = serve_status.sibling(f"{SCHEDULER}{place.name}")
            self._schedulers = Replicas(ServeDiscovery(scheduler, serve_status.UNREACHABLE).find, _wake_nobody)
            self._member = Member(
                base.name,
                engine,
                at_once=place.max_running,
                start=self._try_to_start,
                connect=self._scheduler,
                mark=self._mark,
                retries=self._retries,
            )
            self._mark("starting", f"waiting for its turn to load in group {place.name}")
        starting = self._load() if self._member is None else self._until_started(self._member)
        self._starting = asyncio.get_running_loop().create_task(starting)

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Return once this replica may count as started. Called by Serve, which then stops an older one for it.

        It does at once, so that its progress is seen, unless another one is loaded: then not before it is loaded too.
        With `refuse` in config that is once it was tried; raises ModelError where it could not be loaded.
        """
        from deployments import serve_status

        if config.get("refuse"):
            await self._tried.wait()
            if self._why is not None:
                raise ModelError(f"{self.worker.name} could not be started: {self._why}", code="model_failed")
        while not self._counted and not await self.loaded() and await serve_status.other_is_loaded():
            await asyncio.wait({self._starting}, timeout=OTHERS_S)
        self._counted = True

    async def loaded(self) -> bool:
        """Return whether the model can answer, or sleeps. Other replicas of it ask."""
        return (await self.worker.status()).state in ("ready", "asleep")

    async def address(self) -> Address:
        """Return the address for gateways. Called through Ray, which authenticates both sides."""
        if self._listening is None:
            self._listening = asyncio.get_running_loop().create_task(self._listen())
        return await asyncio.shield(self._listening)

    def answer(self, task: str, request: Request, model: str) -> AsyncGenerator[Waiting | Delta | Reply, None]:
        """Return `Worker.answer` of the base or an adapter, once the engine is awake."""
        stream = self._worker(model).answer(task, request)
        if self._member is None:
            return stream
        return self._member.in_turn(stream, "batch" if request.priority == "batch" else "interactive", model)

    def speak(self, prompt: Prompt, model: str) -> AsyncGenerator[Piece, None]:
        """Return `Worker.speak` of the base or an adapter, once the engine is awake."""
        stream = self._worker(model).speak(prompt)
        if self._member is None:
            return stream
        return _pieces(self._member.in_turn(stream, "batch" if prompt.batch else "interactive", model))

    async def hold_adapters(self, wanted: WantedAdapters) -> AsyncGenerator[dict[str, ModelError], None]:
        """Make these the adapters that are held beside those of the config. Yield the errors of those that cannot be.

        Raises ModelError while the engine is not loaded.
        """
        status = await self.worker.status()
        if status.state != "ready":
            raise ModelError(f"{status.model} is not loaded: {status.step}", code="model_starting")
        errors = await self._further_adapters.hold(wanted)
        await self.server.send_heartbeat()  # a gateway sends requests for an adapter where it is known
        yield errors

    async def statuses(self) -> dict[str, Status]:
        """Return the status of the base and of each adapter, by name; also while the engine starts."""
        workers = [self.worker, *self.adapters.values()]
        if self._member is not None:
            for worker in workers:
                worker.wakes = self._member.wakes
        return {worker.name: await worker.status() for worker in workers}

    async def busy(self) -> int:
        """Return the number of streams that run now."""
        return self.server.answering()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return the number of streams that run now. Called by Serve where this model is autoscaled."""
        return {autoscaling.ONGOING: float(self.server.answering())}

    async def check_health(self) -> None:
        """Raise ModelError where an engine that was ready is dead. Called by Serve."""
        status = await self.worker.status()
        if self._loading_file is not None and status.state != "starting":
            self._loading_file.unlink(missing_ok=True)
        if self._member is not None and self._member.broken is not None:
            raise self._member.broken
        if self._member is not None and not self._member.loaded:
            return
        if self._starting.done() and status.state != "failed":
            try:
                await self.worker.engine.check()
            except ModelError as error:
                self._mark("starting", f"starting again: {error.message}")
                raise

    async def __del__(self) -> None:
        """Drain and stop, with every process of the engine. Called by Serve when it stops this replica."""
        self._starting.cancel()
        if self._metering is not None:
            self._metering.cancel()
        self._lag.stop()
        await self.server.drain(self.drain_s, LEAVE_S)
        if self._member is not None:
            self._member.stop()
            self._schedulers.close()
        await self.server.stop()
        await self.worker.engine.stop()

    async def _listen(self) -> Address:
        import ray.util

        host = ray.util.get_node_ip_address()
        try:
            return Address(host, await self.server.start(host, tls.server_context()), self.server.token)
        except BaseException:
            self._listening = None  # the next gateway that asks tries again: a file may be there by then
            raise

    def _worker(self, model: str) -> Worker:
        if model == self.worker.name:
            return self.worker
        if model not in self.adapters:
            raise ModelError(f"{model} was added just now and is being started.", code="model_starting")
        return self.adapters[model]

    def _mark(self, state: State, step: str) -> None:
        """Set the status of every model, since they share the engine; an adapter that cannot be used stays failed."""
        self.worker.mark(state, step)
        for worker in self.adapters.values():
            if not worker.failed:
                worker.mark(state, step)

    async def _scheduler(self) -> Link | None:
        """Return a connection to the group's scheduler; None where there is none now."""
        available = await self._schedulers.available()
        return available[0] if available else None

    async def _load(self) -> None:
        """Load the model, and try again where that fails, after longer and longer pauses."""
        while (why := await self._try_to_start()) is not None:
            pause = next(self._retries)
            self._mark("failed", again(why, pause))
            self._tried.set()
            await asyncio.sleep(pause)
        self._tried.set()

    async def _try_to_start(self) -> str | None:
        """Load the model. Return why that failed."""
        try:
            await self._start()
        except Exception as error:  # any: others must not wait for its turn, and it may be mended
            log.exception("%s did not start", self.worker.name)
            await self._free()
            self._mark("failed", f"It could not be started, by a fault of Diptych: {error!r}")
        status = await self.worker.status()
        self._why = status.step if status.state == "failed" else None
        return self._why

    async def _free(self) -> None:
        """Stop an engine that may be loaded: the next try loads another, and in a group another model has its turn."""
        try:
            await self._engine.stop()
        except Exception:  # any: the next try shows whether it matters
            log.exception("the engine of %s could not be stopped", self.worker.name)

    async def _until_started(self, member: Member) -> None:
        await member.tried.wait()
        self._tried.set()
        await member.started.wait()

    async def _start(self) -> None:
        await self.worker.start()
        status = await self.worker.status()
        for worker in (self.worker, *self.adapters.values()):
            worker.memory = self._engine.memory
        for worker in list(self.adapters.values()):  # a gateway may bring more meanwhile
            if status.state == "failed":
                worker.mark("failed", f"Its base {status.model} could not be started: {status.step}")
            else:
                await worker.start()
        freeze_heap()

    def _progress(self, step: str) -> None:
        if step == "ready":  # the worker sets that itself, once it is true
            return
        if self._member is not None and self._member.started.is_set():
            self._mark("asleep", f"waking: {step}")
        else:
            self._mark("starting", step)
            if self._member is not None:
                self._member.progressed()


def loading_file() -> Path | None:
    """Create this process's file in the folder LOADING, where that is set, and return it."""
    if not (folder := os.environ.get(LOADING)):
        return None
    file = Path(folder, str(os.getpid()))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    return file


def create_engine(
    args: EngineArgs,
    model: Model,
    loras: Sequence[Model],
    progress: Callable[[str], None],
    decoder: MediaDecoder,
    place: GroupPlace | None = None,
) -> LoraEngine:
    """Return an entry's engine, not started yet. loras: the adapters on it. progress: called with its steps."""
    if args.simulate is not None:
        from serve.engines.fake import FakeEngine

        return FakeEngine(**{"kept": 0, **args.simulate}, decoder=decoder)
    if model.engine == "ocr":
        from serve.engines.ocr.engine import OcrEngine

        return OcrEngine(args.engine_args, progress=progress, decoder=decoder)
    from serve.engines.vllm.engine import VllmEngine

    return VllmEngine(
        model.checkpoint.hub,
        revision=model.checkpoint.revision,
        gated=model.checkpoint.gated,
        expect=model.checkpoint.expect,
        family_args={**model.family_args, **(model.reasoning.engine_args() if model.reasoning else {})},
        engine_args={
            **_observability_args(args),
            **({"distributed_executor_backend": "ray"} if args.spans_nodes else {}),
            **args.engine_args,
        },
        prefix_lm=model.prefix_lm,
        adapters=[Adapter(lora.name, lora.checkpoint.hub, lora.checkpoint.revision) for lora in loras],
        further_adapters=args.max_loras,
        further_rank=args.max_lora_rank,
        prepare=model.prepare,
        progress=progress,
        stat_loggers=_through_ray if args.engine_metrics else None,
        decoder=decoder,
        share=args.num_gpus if 0 < args.num_gpus < 1 else 1.0,
        sleep_level=None if place is None else place.sleep_level,
        sleepers=0 if place is None else place.sleepers,
        chat=model.chat,
    )


async def _pieces(stream: AsyncGenerator[Piece | Waiting, None]) -> AsyncGenerator[Piece, None]:
    """Yield the pieces alone: a plain completion has no place for notices."""
    async with contextlib.aclosing(stream):
        async for item in stream:
            if isinstance(item, Piece):
                yield item


async def _wake_nobody() -> None:
    """Do nothing: a group's scheduler never sleeps."""


def _observability_args(args: EngineArgs) -> dict[str, Any]:
    """Return vLLM's arguments for metrics under the model's name and for our tracing endpoint."""
    arguments: dict[str, Any] = {"served_model_name": args.name} if args.engine_metrics else {}
    if (endpoint := tracing.endpoint()) is not None:
        os.environ.setdefault("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")  # as ours; vLLM's default is gRPC
        arguments["otlp_traces_endpoint"] = endpoint
    return arguments


def _count_abandoned(model: str) -> Callable[[int], None]:
    """Return a function that counts streams whose gateway is gone; the gateway cannot count them itself."""
    from ray.util.metrics import Counter

    about = "Streams that a model cancelled because the connection to their gateway was lost."
    counter = Counter("diptych_orphans", about, tag_keys=("model",))
    return lambda streams: counter.inc(streams, {"model": model})


def _loop_lag(model: str) -> Callable[[float], None]:
    """Return a function that exports the longest event loop lag of the last minute, in seconds."""
    from ray.util.metrics import Gauge

    about = f"Longest time, in the last minute, for which a model's event loop was blocked, at most {EVERY_S} s short."
    gauge = Gauge("diptych_event_loop_lag_seconds", about, tag_keys=("model",))
    return lambda seconds: gauge.set(seconds, {"model": model})


def _through_ray() -> list[Any]:
    """Return vLLM's logger that exports metrics through Ray: a replica has no HTTP port of its own."""
    from vllm.v1.metrics.ray_wrappers import RayPrometheusStatLogger

    return [RayPrometheusStatLogger]
