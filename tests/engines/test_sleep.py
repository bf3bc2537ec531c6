"""An engine sleeps by vLLM's sleep mode where there is one, and else by ending."""

import ast
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from serve.engines.vllm.engine import VllmEngine
from serve.engines.vllm.footprint import CONTEXT, UTILIZATION, awake_part
from serve.errors import ModelError


class RecordingLlm:
    """A stand-in for AsyncLLM that records its calls. fault: raised by each of them."""

    def __init__(self, sleep_mode: bool = True, fault: Exception | None = None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.fault = fault
        self.vllm_config = self
        self.model_config = self
        self.engine_core = self.resources = self
        self.engine_manager = None
        self.enable_sleep_mode = sleep_mode

    def _record(self, *call: Any) -> None:
        self.calls.append(call)
        if self.fault is not None:
            raise self.fault

    async def sleep(self, level: int, mode: str) -> None:
        self._record("sleep", level, mode)

    async def wake_up(self, tags: list[str] | None = None) -> None:
        self._record("wake_up", tags)

    async def collective_rpc(self, method: str) -> None:
        self._record("collective_rpc", method)

    def shutdown(self) -> None:
        self._record("shutdown")


def engine(llm: RecordingLlm, level: int = 1) -> VllmEngine:
    engine = VllmEngine("/models/none", sleep_level=level)
    engine._llm = llm
    return engine


@pytest.mark.parametrize(
    ("level", "waking"),
    [
        (1, [("wake_up", None)]),
        (2, [("wake_up", ["weights"]), ("collective_rpc", "reload_weights"), ("wake_up", ["kv_cache"])]),
    ],
)
async def test_engine_on_a_gpu_sleeps_and_wakes_by_its_level(level: int, waking: list[tuple[Any, ...]]) -> None:
    llm = RecordingLlm()
    sleeper = engine(llm, level)
    await sleeper.sleep()
    await sleeper.wake()
    assert llm.calls == [("sleep", level, "wait"), *waking]


async def test_engine_without_sleep_mode_ends() -> None:
    llm = RecordingLlm(sleep_mode=False)
    sleeper = engine(llm)
    await sleeper.sleep()
    assert llm.calls == [("shutdown",)] and sleeper._llm is None


async def test_fault_while_sleeping_or_waking_is_a_dead_engine() -> None:
    sleeper = engine(RecordingLlm(fault=Exception("Call to wake_up method failed: out of memory")))
    for call in (sleeper.sleep, sleeper.wake):
        with pytest.raises(ModelError, match="out of memory") as failed:
            await call()
        assert failed.value.code == "engine_dead"


def test_installed_vllm_has_the_methods_that_are_called() -> None:
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("vLLM is not installed here")
    folder = Path(spec.origin).parent

    def arguments(file: str, method: str) -> list[list[str]]:
        functions = ast.walk(ast.parse((folder / file).read_text()))
        wanted = [f for f in functions if isinstance(f, ast.AsyncFunctionDef | ast.FunctionDef) and f.name == method]
        return [[argument.arg for argument in function.args.args] for function in wanted]

    assert ["self", "level", "mode"] in arguments("v1/engine/async_llm.py", "sleep")
    assert ["self", "tags"] in arguments("v1/engine/async_llm.py", "wake_up")
    assert arguments("v1/worker/gpu_worker.py", "reload_weights")


def test_contexts_of_sleeping_engines_are_taken_from_the_awake_ones() -> None:
    usable = UTILIZATION * 24e9
    assert awake_part(None, 5) == awake_part(24 * 10**9, 0) == 1
    assert awake_part(24 * 10**9, 5) * usable == pytest.approx(usable - 5 * CONTEXT)
