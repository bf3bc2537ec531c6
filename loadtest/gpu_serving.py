"""Part c of `make gpu-check`: each model alone behind vLLM's own server and behind Diptych, and all in one fan-out.

On a GPU LLaVA-1.5-7B and PaliGemma-3B-mix-448 in their published shapes, with weights that vLLM draws; in a rehearsal
the toys. Beside it the steps of the start, and the memory in use beside the plan.
"""

import argparse
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from deployments.args import Args
from deployments.local.gpus import gpus
from deployments.local.measured import measured
from deployments.plan import MemoryPlan, make_plan, plan_text, read_needs
from loadtest.many_servers import TOKENS, Block, Case, measure, wait_until_ready
from loadtest.servers import Server, diptych, running, vllm
from serve.models import MODELS

STEP = re.compile(r"^ *([\d.]+) s  ([\w.-]+): (.+)$", re.MULTILINE)
"""A line of Diptych's start (deployments/local/progress.py)."""
HEAD = ["model", "served by", "clients", "replies/s", "tokens/s", "p50 ms", "first word ms", "CPU ms before the engine"]


@dataclass(frozen=True)
class Served:
    """A model to serve. checkpoint: its folder. engine: the deployment's engine arguments. share: of a GPU."""

    name: str
    checkpoint: Path
    engine: Mapping[str, Any]
    share: float = 1.0

    @property
    def entry(self) -> dict[str, Any]:
        """Return its entry in a Serve config."""
        given = {"checkpoint": str(self.checkpoint), "engine": dict(self.engine), "num_gpus": self.share}
        return {"name": self.name, **given} if gpus() else {"name": self.name, "engine": dict(self.engine)}


class Brief(Case):
    """A kind of load for some seconds."""

    @property
    def count(self) -> int:
        return max(8, 3 * self.clients)


def planned(chosen: Sequence[Served]) -> tuple[list[Served], MemoryPlan]:
    """Return the models that fit together, with their shares of the first GPU, and the plan."""
    args = Args.model_validate({"models": [model.entry for model in chosen]})
    needs, unread = read_needs(args, planned_by_us=True)
    plan = make_plan(needs, [gpu.total for gpu in gpus()[:1]], unread)
    shares = {place.name: place.share for place in plan.places}
    fitting = [Served(m.name, m.checkpoint, m.engine, shares[m.name]) for m in chosen if m.name in shares]
    return fitting, plan


def run(chosen: Sequence[Served], clients: Sequence[int], compared: int | None, save: Any) -> None:
    """Measure everything. compared: how many of the models vLLM's own server serves as well (None: all). save: called
    with the results so far after each step."""
    fitting, plan = planned(chosen)
    results: dict[str, Any] = {"plan": plan_text(plan), "refused": dict(plan.refused), "starts": {}, "rows": [HEAD]}
    save(results)
    for model in fitting[:compared]:
        kind = vllm("A", model.name, model.checkpoint, model.engine, model.share)
        began = time.monotonic()
        with running(kind) as server:
            results["starts"][f"vLLM's own server, {model.name}"] = [[time.monotonic() - began, "answers"]]
            for number in clients:
                results["rows"].append(_row([model.name], "vLLM's own server", _block("A", [server], [model], number)))
                save(results)
    with running(diptych("B", "Diptych", [model.entry for model in fitting])) as server:
        wait_until_ready(server, [model.name for model in fitting])
        results["starts"] |= steps(server.log.read_text(errors="replace"))
        save(results)
        groups = [[model] for model in fitting] + ([fitting] if len(fitting) > 1 else [])
        for group in groups:
            for number in clients:
                block = _block("B", [server], group, number)
                results["rows"].append(_row([model.name for model in group], "Diptych", block))
                save(results)
        # after the load: on a CPU a page of the cache is in use only once it was written
        in_use = measured([model.name for model in fitting])
        results["memory"] = [["model", "planned", "in use", "plan / in use"]]
        for place in plan.places:
            has = in_use.get(place.name, 0)
            ratio = f"{place.bytes / has:.2f}" if has else "not seen"
            results["memory"].append([place.name, f"{place.bytes / 1e9:.2f} GB", f"{has / 1e9:.2f} GB", ratio])
        save(results)


def steps(log: str) -> dict[str, list[list[Any]]]:
    """Return the steps of each model's start, as [seconds since the start, step], from a server's log."""
    starts: dict[str, list[list[Any]]] = {}
    for seconds, name, step in STEP.findall(log):
        if name in MODELS:
            starts.setdefault(f"Diptych, {name}", []).append([float(seconds), step])
    return starts


def _block(side: str, servers: Sequence[Server], models: Sequence[Served], clients: int) -> Block:
    case = Brief(len(models), True, "1x", clients)
    block: Block = uvloop.run(measure(side, servers, case, 0, [model.name for model in models]))
    return block


def _row(names: Sequence[str], served_by: str, block: Block) -> list[str]:
    if block.failed:
        return [" and ".join(names), served_by, str(block.case.clients), f"{block.failed} FAILED: {block.error}"]
    values = [block.rate, block.rate * TOKENS * len(names), block.p50, block.first, block.outside]
    return [" and ".join(names), served_by, str(block.case.clients), *(f"{value:.1f}" for value in values)]


def main() -> None:
    """Serve the models that a JSON file lists, and write the results to another."""
    parser = argparse.ArgumentParser("loadtest.gpu_serving", description=__doc__)
    parser.add_argument("--models", type=Path, required=True, help="JSON: [[name, folder, engine arguments]]")
    parser.add_argument("--clients", default="1,32")
    parser.add_argument("--compared", type=int, help="how many of them vLLM's own server serves as well (default: all)")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    chosen = [Served(name, Path(folder), engine) for name, folder, engine in json.loads(options.models.read_text())]
    run(
        chosen,
        [int(number) for number in options.clients.split(",")],
        options.compared,
        lambda results: options.out.write_text(json.dumps(results)),
    )


if __name__ == "__main__":
    main()
