"""Measure `diptych batch` beside `diptych run` on the same cores: the toys label drawn scenes both ways.

`make bench-batch`. First a server with `diptych run` before it; then, once that has ended, a Ray cluster of two nodes
(raylets) on this machine with the same models, through Ray Data. Rates are of the answers from the first tenth to the
last one, so that no start counts. The answers have to be equal: results and texts of every model, and what was merged.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loadtest.arguments import whole
from loadtest.pictures import scenes
from loadtest.servers import NotAnswering, diptych, running
from serve.client.storage.names import NameSet
from serve.client.storage.sources import open_source

ROOT = Path(__file__).parents[1]
MODELS = ("toy-llava", "toy-paligemma")
LEAST = 1.2
Json = dict[str, Any]


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--scenes", type=whole(100), default=2000)
    parser.add_argument("--task", default="caption", help="one that needs no text")
    parser.add_argument("--concurrency", type=whole(1), default=32, help="of diptych run")


def run(options: argparse.Namespace) -> tuple[str, Any, bool]:
    """Measure both, print, and return the name, the numbers and whether batch is faster by LEAST with equal answers."""
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder, "pictures")
        pictures.mkdir()
        for number, (file, _) in enumerate(itertools.islice(scenes("1x", 7), options.scenes)):
            (pictures / f"{number:06d}.jpg").write_bytes(file)
        served, first = _through_server(options, pictures, Path(folder, "run.jsonl"))
        batched, second = _through_ray(options, pictures)
    ratio = second / first
    different = sum(_comparable(line) != _comparable(batched.get(file)) for file, line in served.items())
    different += len(batched.keys() - served.keys())
    print(f"diptych run    {len(served):>6} answers  {first:7.1f} a second")
    print(f"diptych batch  {len(batched):>6} answers  {second:7.1f} a second, {ratio:.2f} times as many")
    print(f"{different} pictures have different answers")
    values = {"run": first, "batch": second, "ratio": ratio, "different": different, "scenes": options.scenes}
    return "batch", values, ratio >= LEAST and not different


def _through_server(options: argparse.Namespace, pictures: Path, out: Path) -> tuple[dict[str, Json], float]:
    """Return the lines by file, and the rate."""
    kind = diptych("B", "Diptych", [{"name": name} for name in MODELS])
    command = [sys.executable, "-m", "serve.cli", "run", str(pictures), "--task", options.task, "--out", str(out)]
    command += ["--concurrency", str(options.concurrency)]
    with running(kind) as server:
        process = subprocess.Popen([*command, "--server", server.url], cwd=ROOT)
        times: list[float] = []
        while process.poll() is None:
            now = out.read_bytes().count(b"\n") if out.exists() else 0
            times += [time.monotonic()] * (now - len(times))
            time.sleep(0.05)
    if process.returncode != 0:
        raise NotAnswering("diptych run failed")
    lines = map(json.loads, out.read_text().splitlines())
    return {line["file"]: line for line in lines}, _rate(times)


def _through_ray(options: argparse.Namespace, pictures: Path) -> tuple[dict[str, Json], float]:
    """Return the lines by file, and the rate. Two raylets, each with half of the logical cores."""
    import asyncio

    import ray
    import ray.cluster_utils

    from deployments.batch.command import parse_options
    from deployments.batch.question import checked_question
    from deployments.batch.stages import answers
    from deployments.local.machine import ENVIRONMENT

    arguments = [str(pictures), "--task", options.task, "--models", ",".join(MODELS), "--out", "unused/"]
    question = asyncio.run(checked_question(parse_options(arguments)))
    niceness = "RAY_worker_niceness"
    os.environ[niceness] = ENVIRONMENT[niceness]  # as the server's: at Ray's 15 whatever else runs here goes before
    node = {"num_cpus": 2, "object_store_memory": 512 * 2**20}
    cluster = ray.cluster_utils.Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        cluster.add_node(**node)
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False)
        lines, times = {}, []
        for line in answers(open_source(str(pictures)), question, NameSet()):
            lines[line["file"]] = line
            times.append(time.monotonic())
        return lines, _rate(times)
    finally:
        ray.shutdown()
        cluster.shutdown()


def _rate(times: Sequence[float]) -> float:
    """Return the answers a second, without the first tenth."""
    first = len(times) // 10
    later = list(itertools.dropwhile(lambda at: at == times[first], times[first:]))
    return len(later) / (times[-1] - times[first])


def _comparable(line: Json | None) -> Any:
    """Return what has to be equal: no times, no confidences: their last digits depend on what else was in a batch."""
    if line is None or "error" in line:
        return line
    replies = [(reply["model"], reply["status"], reply["result"], reply["text"]) for reply in line["replies"]]
    return line["merged"]["result"], line["image"], replies
