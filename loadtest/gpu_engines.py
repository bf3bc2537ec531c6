"""Part d of `make gpu-check`: two engines started at once on one GPU, then each put to sleep and woken.

Each engine is a process of its own, as in a replica. The build of vLLM for CPUs has no sleep mode: there the engine is
stopped and started instead, and one of them is enough.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deployments.local.gpus import gpus
from loadtest.gpu_serving import Served, planned
from serve.engines.base import Prompt, Sampling
from serve.engines.vllm.engine import VllmEngine
from serve.errors import ModelError
from serve.media.image import Image
from serve.models import MODELS
from serve.models.base import Turn

ROOT = Path(__file__).parents[1]


class EngineProcess:
    """An engine in a process of its own, which obeys one command a line and answers each with a line of JSON."""

    def __init__(self, model: Served) -> None:
        arguments = [model.name, str(model.checkpoint), json.dumps(model.engine), str(model.share)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "loadtest.gpu_engines", "engine", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def answer(self) -> dict[str, Any]:
        """Return the next answer. Raises RuntimeError where the process has ended."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        raise RuntimeError(f"the engine's process ended with {self.process.wait()}")

    def tell(self, command: str) -> dict[str, Any]:
        """Give a command and return its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.answer()

    def end(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


def run(chosen: Sequence[Served], save: Any) -> bool:
    """Start all engines at once, and let each sleep. Return whether each answered as before, with the planned cache.

    save: called with the results so far after each step.
    """
    fitting, plan = planned(chosen)
    caches = {place.name: place.cache for place in plan.places}
    results: dict[str, Any] = {"refused": dict(plan.refused)}
    results["together"] = [["model", "ready after", "cache planned", "cache made", "answers"]]
    results["sleep"] = [["model", "how", "asleep after", "freed of the GPU", "awake after", "same answer"]]
    good = bool(fitting)
    engines = [EngineProcess(model) for model in fitting]
    try:
        began, answers = time.monotonic(), []
        for engine, model in zip(engines, fitting, strict=True):
            ready = engine.answer()
            if "error" in ready:
                results["together"].append([model.name, f"FAILED: {ready['error']}"])
                save(results)
                return False
            row = [model.name, f"{ready['at'] - began:.1f} s", _gb(caches[model.name]), _gb(ready["cache"])]
            answers.append(engine.tell("ask")["text"])
            results["together"].append([*row, "yes" if answers[-1] else "NO"])
            good &= bool(answers[-1]) and abs(ready["cache"] / caches[model.name] - 1) < 0.05
            save(results)
        sleepers = list(zip(engines, fitting, answers, strict=True))
        for engine, model, before in sleepers if gpus() else sleepers[:1]:
            free = _free()
            slept = engine.tell("sleep")
            freed = _gb(_free() - free) if gpus() else "no GPU"
            woken = engine.tell("wake")
            same = engine.tell("ask")["text"] == before
            row = [model.name, slept["how"], f"{slept['seconds']:.1f} s", freed, f"{woken['seconds']:.1f} s"]
            results["sleep"].append([*row, "yes" if same else "NO"])
            good &= same
            save(results)
    finally:
        for engine in engines:
            engine.end()
    return good


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def _free() -> int:
    return sum(gpu.free for gpu in gpus()[:1])


async def obey(name: str, checkpoint: Path, engine_args: dict[str, Any], share: float) -> None:
    """Start an engine, then obey `ask`, `sleep` and `wake` until the standard input ends."""
    model, sleeps = MODELS[name], bool(gpus())
    engine = VllmEngine(
        str(checkpoint),
        family_args=model.family_args,
        engine_args=engine_args,
        prefix_lm=model.prefix_lm,
        prepare=model.prepare,
        share=share,
        sleep_level=1,
    )
    try:
        await engine.start()
    except ModelError as error:
        _say(error=error.message[:500])
        return
    assert engine.memory is not None
    _say(at=time.monotonic(), cache=engine.memory.cache_bytes)
    while command := (await asyncio.to_thread(sys.stdin.readline)).strip():
        began = time.monotonic()
        if command == "ask":
            _say(text=await _reply(engine, name))
            continue
        await (engine.sleep() if command == "sleep" else engine.wake())
        how = "level 1" if sleeps else "no sleep mode in the CPU build: stopped and started"
        _say(seconds=time.monotonic() - began, how=how)
    await engine.stop()


async def _reply(engine: VllmEngine, name: str) -> str:
    """Return the greedy reply to a question about a picture of two colours."""
    pixels = np.zeros((96, 128, 3), np.uint8)
    pixels[:, :64, 0], pixels[:, 64:, 2] = 255, 255
    text = MODELS[name].converse([Turn("user", "what color is the left half?", has_image=True)])
    prompt = Prompt(text, Image(pixels), Sampling(max_tokens=8, temperature=0, ignore_eos=True))
    return "".join([piece.text async for piece in engine.generate(prompt)])


def _say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def main() -> int:
    """Start the engines that a JSON file lists, and write the results to another."""
    parser = argparse.ArgumentParser("loadtest.gpu_engines", description=__doc__)
    parser.add_argument("--models", type=Path, required=True, help="JSON: [[name, folder, engine arguments]]")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    chosen = [
        Served(name, Path(folder), {**engine, "enforce_eager": True})
        for name, folder, engine in json.loads(options.models.read_text())
    ]
    return 0 if run(chosen, lambda results: options.out.write_text(json.dumps(results))) else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["engine"]:
        name, folder, engine, share = sys.argv[2:]
        asyncio.run(obey(name, Path(folder), json.loads(engine), float(share)))
    else:
        sys.exit(main())
