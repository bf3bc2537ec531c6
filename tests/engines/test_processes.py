import gc
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import checkpoints
import psutil
import pytest

from serve.engines.vllm import processes

SCRIPT = """
import asyncio, json, os, resource, signal, sys
import psutil
from serve.engines.base import Prompt, Sampling
from serve.engines.vllm.engine import VllmEngine

async def main():
    engine = VllmEngine(sys.argv[1])
    await engine.start()
    pieces = [piece.text async for piece in engine.generate(Prompt("a dog", None, Sampling(max_tokens=4)))]
    own = psutil.Process()
    children = [[child.pid, child.cpu_times().user] for child in own.children(recursive=True)]
    print(json.dumps([children, resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime]), flush=True)
    os.kill(own.pid, signal.SIGKILL)

asyncio.run(main())
"""


def gone(pid: int, within_s: float) -> bool:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.1)
    return False


def test_a_process_that_has_torch_does_not_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.delenv("VLLM_WORKER_MULTIPROC_METHOD", raising=False)
    assert processes.may_fork()
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    assert not processes.may_fork()
    monkeypatch.delenv("VLLM_WORKER_MULTIPROC_METHOD")
    monkeypatch.setitem(sys.modules, "torch", object())
    assert not processes.may_fork()


def test_imports_are_left_out_of_garbage_collection_from_then_on() -> None:
    frozen = gc.get_freeze_count()
    with processes.importing():
        assert not gc.isenabled()
        kept = [[number] for number in range(1000)]
    assert gc.isenabled() and gc.get_freeze_count() >= frozen + len(kept)
    gc.disable()
    try:
        with processes.importing():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def _niceness(answers: "multiprocessing.Queue[int]") -> None:
    answers.put(os.nice(0))


@pytest.mark.parametrize("niceness", [0, 3])
def test_an_engine_process_is_as_nice_as_its_start_method_says(niceness: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_niceness", niceness)
    context = processes.WatchedForkContext()
    answers = context.Queue()
    child = context.Process(target=_niceness, args=(answers,))
    child.start()
    assert answers.get(timeout=10) == min(19, os.nice(0) + niceness)
    child.join()


def _look(answers: "multiprocessing.Queue[bool]", number: int) -> None:
    answers.put(os.readlink(f"/proc/self/fd/{number}").startswith("socket:"))


def test_a_forked_child_lets_go_of_its_parents_sockets() -> None:
    with socket.socket() as ours:
        context = processes.WatchedForkContext()
        answers: multiprocessing.Queue[bool] = context.Queue()
        child = context.Process(target=_look, args=(answers, ours.fileno()))
        child.start()
        assert answers.get(timeout=20) is False
        child.join(20)
        assert child.exitcode == 0
        assert os.readlink(f"/proc/self/fd/{ours.fileno()}").startswith("socket:")


def test_a_child_does_not_outlive_its_parent() -> None:
    code = (
        "import os, signal, time\nfrom serve.engines.vllm import processes\n"
        "child = processes.WatchedForkContext().Process(target=time.sleep, args=(60,))\nchild.start()\n"
        "print(child.pid, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    began = time.monotonic()  # the pipe closes when the child is gone as well, which would sleep for a minute
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL
    assert time.monotonic() - began < 30
    assert gone(int(done.stdout), 10)


@pytest.mark.engine
@pytest.mark.filterwarnings("ignore")
def test_an_engine_forks_speaks_and_dies_with_its_parent(tmp_path: Path) -> None:
    folder = checkpoints.make("llava", tmp_path / "llava")
    environment = {name: value for name, value in os.environ.items() if name != "VLLM_WORKER_MULTIPROC_METHOD"}
    environment["VLLM_CACHE_ROOT"] = str(tmp_path / "cache")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder)], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    [[core, cpu_s]], ended_s = json.loads(done.stdout.splitlines()[-1])  # one child: no Worker, no resource tracker
    assert cpu_s < 9  # it did not import vLLM again, which takes 12
    assert ended_s < 5  # nor did a process that looks at the model's class: VLLM_CACHE_ROOT is new
    assert gone(core, 10)
