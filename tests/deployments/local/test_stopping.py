"""Signals to a process whose main thread is busy, or drains."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """
import signal, sys, threading, time
from deployments.local.stopping import Stopper

stopped = threading.Event()
stopper = Stopper(lambda: (print("stop"), stopped.set(), time.sleep(0.3)), lambda seconds: work(), drain_s={drain_s})

def work():
    print("drain", flush=True)
    time.sleep({work_s})
    print("drained", flush=True)

with stopper:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))  # as ray.init does
    stopper.take_signals()
    {serving}
    print("up", flush=True)
    {main}
"""
SERVING = "stopper.serving.set()"
WAIT = "stopped.wait()\n    raise SystemExit(3)  # what it waited for is gone"
SWALLOW = """
    while True:
        try:
            time.sleep(1)
        except BaseException:
            pass"""


def ended(*numbers: int, serving: str = "pass", main: str = WAIT, work_s: float = 0.0, drain_s: float = 9) -> list[str]:
    """Send the signals to the script. Return its lines after it was up; its status is asserted to be 0."""
    script = SCRIPT.format(serving=serving, main=main, work_s=work_s, drain_s=drain_s)
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.3 if len(numbers) > 1 else 0)
    lines = process.communicate(timeout=30)[0].split()
    assert process.returncode == 0, lines
    return lines


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("main", [WAIT, SWALLOW])
def test_signal_during_the_start_stops_at_once_whatever_the_main_thread_does(number: int, main: str) -> None:
    assert ended(number, main=main) == ["stop", "Stopped."]


@pytest.mark.slow
def test_sigterm_to_a_serving_process_drains_first() -> None:
    assert ended(signal.SIGTERM, serving=SERVING) == ["drain", "drained", "stop", "Stopped."]


@pytest.mark.slow
def test_sigint_to_a_serving_process_does_not_drain() -> None:
    assert ended(signal.SIGINT, serving=SERVING) == ["stop", "Stopped."]


@pytest.mark.slow
def test_second_signal_ends_the_drain() -> None:
    assert ended(signal.SIGTERM, signal.SIGINT, serving=SERVING, work_s=60) == ["drain", "stop", "Stopped."]


@pytest.mark.slow
def test_drain_that_does_not_end_is_left_after_its_seconds() -> None:
    assert ended(signal.SIGTERM, serving=SERVING, work_s=60, drain_s=-0.8) == ["drain", "stop", "Stopped."]
