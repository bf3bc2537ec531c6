"""Measuring how long the event loop is blocked, and the metric of it."""

import asyncio
import gc
import time

import pytest
from loop_work import TICK_S
from served import calling, router

from serve.api import loop_lag
from serve.api.app import create_app
from serve.api.loop_lag import LoopLag
from serve.api.metrics import Metrics


@pytest.mark.slow
@pytest.mark.parametrize("held_s", [0.1, 0.2, 0.4])
async def test_blocking_work_is_measured(held_s: float) -> None:
    lag = LoopLag(every_s=TICK_S)
    lag.start()
    await asyncio.sleep(0.1)
    time.sleep(held_s)
    await asyncio.sleep(0.1)
    lag.stop()
    assert held_s - TICK_S - 0.005 < lag.worst() < held_s + 5


@pytest.mark.slow
async def test_waiting_loop_has_no_lag() -> None:
    lag = LoopLag(clock=time.thread_time, every_s=TICK_S)
    lag.start()
    await asyncio.sleep(0.3)
    await asyncio.to_thread(time.sleep, 0.2)
    lag.stop()
    assert lag.worst() < 0.1


@pytest.mark.slow
async def test_lag_before_the_window_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_lag, "WINDOW_S", 0.5)
    lag = LoopLag(clock=time.thread_time, every_s=TICK_S)
    lag.start()
    await asyncio.sleep(0.05)
    busy_until = time.thread_time() + 0.3
    while time.thread_time() < busy_until:
        pass
    await asyncio.sleep(0.05)
    assert lag.worst() > 0.2
    await asyncio.sleep(0.7)
    assert lag.worst() < 0.1
    lag.stop()


@pytest.mark.slow
async def test_lag_is_reported_until_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_lag, "REPORT_S", 0.05)
    reported: list[float] = []
    lag = LoopLag(reported.append, every_s=TICK_S)
    lag.start()
    while len(reported) < 3:
        await asyncio.sleep(0.01)
    lag.stop()
    count = len(reported)
    await asyncio.sleep(0.2)
    assert len(reported) == count and all(lag >= 0 for lag in reported)


@pytest.mark.slow
async def test_lag_is_exported_to_prometheus() -> None:
    metrics, lag = Metrics(), LoopLag(every_s=TICK_S)
    metrics.watch(lag=lag)
    lag.start()
    await asyncio.sleep(0.05)
    time.sleep(0.3)
    await asyncio.sleep(0.05)
    async with calling(create_app(router(), metrics=metrics)) as client:
        text = (await client.get("/metrics")).text
    lag.stop()
    (line,) = [line for line in text.splitlines() if line.startswith("diptych_event_loop_lag_seconds")]
    assert float(line.split()[1]) > 0.25


def test_frozen_heap_is_excluded_from_collections() -> None:
    held = [[] for _ in range(1000)]
    loop_lag.freeze_heap()
    known = {id(item) for item in gc.get_objects()}
    assert not any(id(item) in known for item in held)
    assert gc.get_freeze_count() >= len(held)
