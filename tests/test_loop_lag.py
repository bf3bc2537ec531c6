"""The watch over the event loop, and its metric."""

import asyncio
import gc
import time

import pytest
from served import calling, router

from serve import loop_lag
from serve.api.app import create_app
from serve.api.metrics import Metrics
from serve.loop_lag import LoopLag


@pytest.mark.parametrize("held_s", [0.1, 0.2, 0.4])
async def test_work_that_holds_the_loop_is_seen(held_s: float) -> None:
    lag = LoopLag()
    lag.start()
    await asyncio.sleep(0.1)
    time.sleep(held_s)
    await asyncio.sleep(0.1)
    lag.stop()
    assert held_s - 0.03 < lag.worst() < held_s + 5


async def test_a_loop_that_only_waits_is_free() -> None:
    lag = LoopLag(clock=time.thread_time)
    lag.start()
    await asyncio.sleep(0.3)
    await asyncio.to_thread(time.sleep, 0.2)
    lag.stop()
    assert lag.worst() < 0.1


async def test_what_was_long_ago_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_lag, "WINDOW_S", 0.5)
    lag = LoopLag(clock=time.thread_time)
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


async def test_it_tells_now_and_then_until_it_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_lag, "TELL_S", 0.05)
    heard: list[float] = []
    lag = LoopLag(heard.append)
    lag.start()
    while len(heard) < 3:
        await asyncio.sleep(0.01)
    lag.stop()
    count = len(heard)
    await asyncio.sleep(0.2)
    assert len(heard) == count and all(lag >= 0 for lag in heard)


async def test_it_is_told_to_prometheus() -> None:
    metrics, lag = Metrics(), LoopLag()
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


def test_a_frozen_heap_is_left_out_of_collections() -> None:
    held = [[] for _ in range(1000)]
    loop_lag.freeze_heap()
    known = {id(item) for item in gc.get_objects()}
    assert not any(id(item) in known for item in held)
    assert gc.get_freeze_count() >= len(held)
