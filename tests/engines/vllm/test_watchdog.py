"""The watchdog, with processes that sleep, work, and are stopped."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Iterator

import pytest

from serve.engines.vllm.process_tree import cpu_seconds, states
from serve.engines.vllm.watchdog import CHECKS, GAP_S, STALL_S, Watchdog

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


def check_each_second(watchdog: Watchdog, clock: Clock, count: int = CHECKS + int(STALL_S)) -> list[bool]:
    results = []
    for _ in range(count):
        clock.now += 1
        results.append(watchdog.is_stalled())
    return results


def settled(process: int) -> None:
    """Wait until all threads of a process sleep."""
    while set(states(process)) != {"S"}:
        pass


def test_waiting_engine_is_stalled_after_the_limit_and_not_before(running: Callable[[str], int]) -> None:
    process, clock = running(WAITS), Clock()
    settled(process)
    watchdog = Watchdog(lambda: [process], clock)
    with watchdog.busy():
        results = check_each_second(watchdog, clock)
    assert results.index(True) + 1 >= STALL_S and results[-1]


def test_engine_without_requests_is_not_stalled(running: Callable[[str], int]) -> None:
    process, clock = running(WAITS), Clock()
    watchdog = Watchdog(lambda: [process], clock)
    assert not any(check_each_second(watchdog, clock))
    with watchdog.busy():
        pass
    assert not any(check_each_second(watchdog, clock))


def test_working_engine_is_never_stalled(running: Callable[[str], int]) -> None:
    process, clock = running(WORKS), Clock()
    watchdog = Watchdog(lambda: [process], clock)
    with watchdog.busy():
        assert not any(check_each_second(watchdog, clock, 3 * int(STALL_S)))


def test_stopped_engine_is_stalled(running: Callable[[str], int]) -> None:
    process, clock = running(WORKS), Clock()
    os.kill(process, signal.SIGSTOP)
    while set(states(process)) != {"T"}:
        pass
    watchdog = Watchdog(lambda: [process], clock)
    with watchdog.busy():
        assert check_each_second(watchdog, clock)[-1]
    watchdog.kill()
    assert os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT) is not None


def test_output_restarts_the_wait(running: Callable[[str], int]) -> None:
    process, clock = running(WAITS), Clock()
    settled(process)
    watchdog = Watchdog(lambda: [process], clock)
    with watchdog.busy():
        for _ in range(10):
            assert not any(check_each_second(watchdog, clock, int(STALL_S) - 1))
            watchdog.note_output()


@pytest.mark.parametrize("count", [CHECKS, 8, 200])
@pytest.mark.parametrize("apart", [0.0, 0.001, 0.004])
def test_checks_in_quick_succession_count_as_a_single_check(
    running: Callable[[str], int], count: int, apart: float
) -> None:
    process, clock = running(WAITS), Clock()
    settled(process)
    watchdog = Watchdog(lambda: [process], clock)
    with watchdog.busy():
        clock.now += 4
        for _ in range(count):
            assert not watchdog.is_stalled()
            clock.now += apart
        clock.now += 3
        assert not watchdog.is_stalled()


@pytest.mark.parametrize("blocked_s", [[GAP_S + 0.1] * 6, [20, 1, 1], [1, 1, 1, 1, 1, 60, 1, 1]])
def test_checks_before_the_event_loop_was_blocked_do_not_count(
    running: Callable[[str], int], blocked_s: list[float]
) -> None:
    process, clock = running(WAITS), Clock()
    settled(process)
    watchdog = Watchdog(lambda: [process], clock)
    with watchdog.busy():
        for seconds in blocked_s:
            clock.now += seconds
            assert not watchdog.is_stalled()
        assert any(check_each_second(watchdog, clock))  # it is noticed all the same, once the loop runs again


async def test_request_counts_only_while_its_next_output_is_awaited(running: Callable[[str], int]) -> None:
    """A request does not count while it is prepared, nor while its last output is used."""
    process, clock = running(WAITS), Clock()
    settled(process)
    watchdog = Watchdog(lambda: [process], clock)

    async def speak() -> AsyncGenerator[str, None]:
        yield "a"
        await asyncio.sleep(0.01)
        stalled.extend(check_each_second(watchdog, clock))
        yield "b"

    stalled: list[bool] = []
    assert not any(check_each_second(watchdog, clock))
    pieces = watchdog.watched(speak())
    assert await anext(pieces) == "a" and not stalled
    assert not any(check_each_second(watchdog, clock))
    assert await anext(pieces) == "b" and any(stalled)
    assert [piece async for piece in pieces] == [] and not any(check_each_second(watchdog, clock))


def test_engine_without_known_processes_is_not_stalled() -> None:
    clock = Clock()
    watchdog = Watchdog(lambda: [], clock)
    with watchdog.busy():
        assert not any(check_each_second(watchdog, clock))


def test_cpu_is_counted(running: Callable[[str], int]) -> None:
    process = running(WORKS)
    while cpu_seconds(process) < 0.05:
        pass
    assert cpu_seconds(2**22 + 1) == 0
