"""The energy that requests use, where an engine has its GPUs to itself: NVML's counters, divided among what runs.

NVML counts a GPU's millijoules since its driver was loaded (Volta and later). The power of the last PERIOD_S is taken
to be that of the next, and each request gets an equal part of it for the time in which it runs: a request alone gets
all. What a GPU uses while nothing runs is nobody's.
"""

import asyncio
import contextlib
import importlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

log = logging.getLogger(__name__)

PERIOD_S = 0.1
"""Seconds between two looks at the counters, which drivers renew as often."""
LIBRARIES = ("pynvml", "vllm.third_party.pynvml")
"""Modules that speak to NVML: nvidia-ml-py, and vLLM's copy of it."""
DEVICES = "CUDA_VISIBLE_DEVICES"


class EnergyMeter:
    """Divides the energy of an engine's GPUs among its requests. read: joules since any moment. clock: in seconds."""

    def __init__(self, read: Callable[[], float], clock: Callable[[], float] = time.monotonic) -> None:
        self._read, self._clock = read, clock
        self._running = 0
        self._watts = self._each = 0.0  # _each: joules that a request would have used that ran all the time
        self._at = self._sampled_at = clock()
        self._joules: float | None = None

    async def watch(self) -> None:
        """Read the counters every PERIOD_S until cancelled, or until they cannot be read any more."""
        while True:
            try:
                self.sample(await asyncio.to_thread(self._read))
            except Exception:  # NVML's errors have a class of their own in each copy of its library
                log.exception("the GPU's energy cannot be read any more")
                self.sample(None)
                return
            await asyncio.sleep(PERIOD_S)

    def sample(self, joules: float | None) -> None:
        """Take the counters' sum; None where there is none any more."""
        now = self._advance()
        if joules is None:
            self._watts = 0.0
        elif self._joules is not None and now > self._sampled_at:
            self._watts = max(0.0, joules - self._joules) / (now - self._sampled_at)
        self._joules, self._sampled_at = joules, now

    @contextlib.contextmanager
    def request(self) -> Iterator[Callable[[], float | None]]:
        """Count a request as running. Yields what returns the joules that it has used; None where none are known."""
        self._advance()
        began = self._each
        self._running += 1

        def used() -> float | None:
            self._advance()
            return None if self._joules is None else self._each - began

        try:
            yield used
        finally:
            self._advance()
            self._running -= 1

    def _advance(self) -> float:
        now = self._clock()
        if self._running:
            self._each += self._watts * (now - self._at) / self._running
        self._at = now
        return now


def meter_of_own_gpus(num_gpus: float, *, shared: bool) -> EnergyMeter | None:
    """Return a meter of this process's GPUs; None where it has none, has a part of one, shares them, or NVML is absent.

    num_gpus: what Ray reserved, which CUDA_VISIBLE_DEVICES names. shared: other engines take turns on them.
    """
    if shared or num_gpus < 1 or num_gpus != int(num_gpus):
        return None
    nvml = _library()
    if nvml is None:
        return None
    try:
        nvml.nvmlInit()
        handles = _handles(nvml, int(num_gpus))
        for handle in handles:
            nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except nvml.NVMLError as error:
        log.info("the GPU does not tell its energy: %s", error)
        return None
    if not handles:
        return None
    return EnergyMeter(lambda: sum(nvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in handles) / 1000)


def _library() -> ModuleType | None:
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):
            return importlib.import_module(name)
    return None


def _handles(nvml: Any, count: int) -> Sequence[Any]:
    """Return the handles of this process's GPUs, by index or UUID; none where it is not known which they are, or where
    one is a part of a card (MIG), whose energy is told for all parts together."""
    named = os.environ.get(DEVICES)
    names = (
        [name.strip() for name in named.split(",")] if named else [str(at) for at in range(nvml.nvmlDeviceGetCount())]
    )
    if len(names) != count or any(name.startswith("MIG") for name in names):
        return []
    return [
        nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdecimal() else nvml.nvmlDeviceGetHandleByUUID(name)
        for name in names
    ]
