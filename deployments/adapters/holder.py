"""A replica's part: holds the LoRA adapters that gateways want, and lets requests end before one goes."""

import asyncio
import contextlib
import dataclasses
import logging
from typing import NamedTuple

from deployments.adapters.state import LoadedAdapter, WantedAdapters
from serve.engines import adapters
from serve.engines.energy import EnergyMeter
from serve.engines.lora_view import LoraEngine, LoraView
from serve.errors import ModelError
from serve.models import own
from serve.models.base import Model
from serve.worker import Worker

log = logging.getLogger(__name__)

LINGER_S = 3.0
"""Seconds for which an unwanted adapter still answers, since other gateways learn of it by then."""
ROOM_S = 10.0
"""Seconds to wait for one that is being unloaded to leave its room."""


class Held(NamedTuple):
    """An adapter of the engine. engine_name: its name in prompts; None where it could not be loaded."""

    adapter: LoadedAdapter
    worker: Worker
    engine_name: str | None


class AdapterHolder:
    """The LoRA adapters of a replica that came while it ran.

    base, engine: of the replica. workers: the replica's, by model, to which this adds its own. most: adapters that the
    engine has room for, beside those of the config.
    """

    def __init__(
        self, base: Model, engine: LoraEngine, workers: dict[str, Worker], most: int, meter: EnergyMeter | None = None
    ) -> None:
        self._base, self._engine, self._workers, self._most, self._meter = base, engine, workers, most, meter
        self._version = 0
        self._held: dict[str, Held] = {}
        self._errors: dict[str, ModelError] = {}
        self._turn = asyncio.Lock()
        self._holding: set[asyncio.Task[dict[str, ModelError]]] = set()
        self._leaving: set[asyncio.Task[None]] = set()

    async def hold(self, wanted: WantedAdapters) -> dict[str, ModelError]:
        """Hold these adapters and no others. Return the errors of those that cannot be loaded, by name.

        One that failed is tried again. A version older than the last one changes nothing. What was begun is finished,
        also where the caller leaves.
        """
        task = asyncio.get_running_loop().create_task(self._hold(wanted))
        self._holding.add(task)
        task.add_done_callback(self._holding.discard)
        return await asyncio.shield(task)

    async def _hold(self, wanted: WantedAdapters) -> dict[str, ModelError]:
        async with self._turn:
            if wanted.version >= self._version:
                self._version = wanted.version
                self._errors = await self._change(wanted)
            return self._errors

    async def _change(self, wanted: WantedAdapters) -> dict[str, ModelError]:
        for name in self._held.keys() - {adapter.name for adapter in wanted.adapters}:
            self._let_go(self._held.pop(name))
        errors = {}
        for adapter in wanted.adapters:
            former = self._held.get(adapter.name)
            if former is not None and former.engine_name is not None and former.adapter.loaded == adapter.loaded:
                continue
            try:
                held = await self._load(adapter, wanted)
            except Exception as fault:  # any: the other adapters must not wait for this one
                error = fault if isinstance(fault, ModelError) else _unforeseen(adapter, fault)
                errors[adapter.name] = error
                if former is not None and former.engine_name is not None:
                    continue  # the one that was to be replaced answers on
                held = self._failed(adapter, error)
            self._held[adapter.name], self._workers[adapter.name] = held, held.worker
            if former is not None:
                self._let_go(former)
        return errors

    async def _load(self, adapter: LoadedAdapter, wanted: WantedAdapters) -> Held:
        try:
            model = own.lora(adapter, self._base)
        except ValueError as error:
            raise ModelError(f"{adapter.name}: {error}", code="adapter_refused") from None
        try:
            folder = await asyncio.to_thread(adapters.locate_in, wanted.folder, adapter.adapter, wanted.max_mb)
        except ModelError as error:
            raise ModelError(f"The adapter {adapter.name} cannot be used: {error.message}", code=error.code) from None
        await self._wait_for_room()
        name = await self._engine.add_adapter(adapters.Adapter(adapter.name, str(folder)))
        worker = Worker(model, LoraView(self._engine, name), meter=self._meter)
        worker.memory = self._engine.memory
        await worker.start()
        return Held(adapter, worker, name)

    def _failed(self, adapter: LoadedAdapter, error: ModelError) -> Held:
        """Return an adapter that could not be loaded, whose worker says why."""
        worker = Worker(dataclasses.replace(self._base, name=adapter.name), LoraView(self._engine, adapter.name))
        worker.mark("failed", error.message)
        return Held(adapter, worker, None)

    async def _wait_for_room(self) -> None:
        """Return once the engine has room for another adapter. Raises ModelError where it gets none."""
        until = asyncio.get_running_loop().time() + ROOM_S
        while sum(held.engine_name is not None for held in self._held.values()) + len(self._leaving) >= self._most:
            left = until - asyncio.get_running_loop().time()
            if not self._leaving or left <= 0:
                why = "one that was unloaded still answers a request" if self._leaving else "unload one first"
                raise ModelError(
                    f"{self._base.name} has room for {self._most} adapters beside the config's (max_loras): {why}.",
                    code="too_many_adapters",
                )
            await asyncio.wait(self._leaving, timeout=left, return_when=asyncio.FIRST_COMPLETED)

    def _let_go(self, held: Held) -> None:
        """Unload an adapter in the background, once its requests have ended."""
        if held.engine_name is None:
            self._drop_worker(held)
        else:
            task = asyncio.get_running_loop().create_task(self._unload(held, held.engine_name))
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    async def _unload(self, held: Held, name: str) -> None:
        await asyncio.sleep(LINGER_S)
        self._drop_worker(held)
        while (await held.worker.status()).unanswered:
            await asyncio.sleep(0.1)
        with contextlib.suppress(ModelError):
            await self._engine.remove_adapter(name)

    def _drop_worker(self, held: Held) -> None:
        if self._workers.get(held.adapter.name) is held.worker:
            del self._workers[held.adapter.name]


def _unforeseen(adapter: LoadedAdapter, fault: Exception) -> ModelError:
    log.error("the LoRA adapter %s could not be loaded", adapter.name, exc_info=fault)
    return ModelError(f"The adapter {adapter.name} could not be loaded: {fault!r}"[:500], code="load_failed")
