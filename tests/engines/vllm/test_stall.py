"""Whether an engine that owes answers still works on them: with processes that sleep, work, and are stopped."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Iterator

import pytest

from serve.engines.vllm.process_tree import cpu_seconds, states
from serve.engines.vllm.stall import GAP_S, LOOKS, STALL_S, Stall

WORKS = "while True: pass"
WAITS = "import threading; threading.Event().wait()"


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def running() -> Iterator[Callable[[str], int]]:
    started: list[subprocess.Popen[bytes]] = []

    def run(program: str) -> int:
        started.append(subprocess.Popen([sys.executable, "-S", "-c", f"print(1, flush=True)\n{program}"], stdout=-1))
        assert started[-1].stdout is not None and started[-1].stdout.readline()
        return started[-1].pid

    yield run
    for process in started:
        process.kill()
        process.communicate()


def looks(stall: Stall, clock: Clock, count: int = LOOKS + int(STALL_S)) -> list[bool]:
    found = []
    for _ in range(count):
        clock.now += 1
        found.append(stall.look())
    return found


def settled(process: int) -> None:
    """Until it has nothing more to do."""
    while set(states(process)) != {"S"}:
        pass


def test_one_that_waits_for_ever_is_stalled_and_not_before_its_time(running: Callable[[str], int]) -> None:
    process, clock = running(WAITS), Clock()
    settled(process)
    stall = Stall(lambda: [process], clock)
    with stall.owing():
        found = looks(stall, clock)
    assert found.index(True) + 1 >= STALL_S and found[-1]


def test_one_that_owes_nothing_may_wait(running: Callable[[str], int]) -> None:
    process, clock = running(WAITS), Clock()
    stall = Stall(lambda: [process], clock)
    assert not any(looks(stall, clock))
    with stall.owing():
        pass
    assert not any(looks(stall, clock))


def test_one_that_works_is_not_stalled_however_long_it_takes(running: Callable[[str], int]) -> None:
    process, clock = running(WORKS), Clock()
    stall = Stall(lambda: [process], clock)
    with stall.owing():
        assert not any(looks(stall, clock, 100))


def test_one_that_is_stopped_at_its_work_is_stalled(running: Callable[[str], int]) -> None:
    process, clock = running(WORKS), Clock()
    os.kill(process, signal.SIGSTOP)
    while set(states(process)) != {"T"}:
        pass
    stall = Stall(lambda: [process], clock)
    with stall.owing():
        assert looks(stall, clock)[-1]
    stall.kill()
    assert os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT) is not None


def test_a_word_begins_the_wait_anew(running: Callable[[str], int]) -> None:
    process, clock = running(WAITS), Clock()
    settled(process)
    stall = Stall(lambda: [process], clock)
    with stall.owing():
        for _ in range(10):
            assert not any(looks(stall, clock, int(STALL_S) - 1))
            stall.heard()


@pytest.mark.parametrize("count", [LOOKS, 8, 200])
@pytest.mark.parametrize("apart", [0.0, 0.001, 0.004])
def test_looks_that_come_at_once_are_one_look(running: Callable[[str], int], count: int, apart: float) -> None:
    process, clock = running(WAITS), Clock()
    settled(process)
    stall = Stall(lambda: [process], clock)
    with stall.owing():
        clock.now += 4
        for _ in range(count):
            assert not stall.look()
            clock.now += apart
        clock.now += 3
        assert not stall.look()


@pytest.mark.parametrize("stood", [[GAP_S + 0.1] * 6, [20, 1, 1], [1, 1, 1, 1, 1, 60, 1, 1]])
def test_looks_before_our_own_loop_stood_still_do_not_count(running: Callable[[str], int], stood: list[float]) -> None:
    process, clock = running(WAITS), Clock()
    settled(process)
    stall = Stall(lambda: [process], clock)
    with stall.owing():
        for seconds in stood:
            clock.now += seconds
            assert not stall.look()
        assert any(looks(stall, clock))  # it is found all the same, once our loop runs again


async def test_only_what_we_wait_for_is_owed(running: Callable[[str], int]) -> None:
    """Not what is being prepared here, nor what came and was not taken yet."""
    process, clock = running(WAITS), Clock()
    settled(process)
    stall = Stall(lambda: [process], clock)

    async def speak() -> AsyncGenerator[str, None]:
        yield "a"
        await asyncio.sleep(0.01)
        stalled.extend(looks(stall, clock))
        yield "b"

    stalled: list[bool] = []
    assert not any(looks(stall, clock))
    words = stall.watched(speak())
    assert await anext(words) == "a" and not stalled
    assert not any(looks(stall, clock))
    assert await anext(words) == "b" and any(stalled)
    assert [word async for word in words] == [] and not any(looks(stall, clock))


def test_an_engine_that_cannot_be_seen_is_not_called_stalled() -> None:
    clock = Clock()
    stall = Stall(lambda: [], clock)
    with stall.owing():
        assert not any(looks(stall, clock))


def test_cpu_is_counted(running: Callable[[str], int]) -> None:
    process = running(WORKS)
    while cpu_seconds(process) < 0.05:
        pass
    assert cpu_seconds(2**22 + 1) == 0
