"""Columns of every kind in one fan-out, merged, and each killed in turn: what it costs the others, and what comes back.

    make bench-columns
    make bench-columns ARGS="--ocr build/ocr"    after pip install --target build/ocr "rapidocr==3.10.0" onnxruntime

A toy of the catalogue; a copy of one by its folder alone, whose form of boxes is found by probing; a toy on vLLM's own
server, as a remote model; the reader of text, where it is installed.
"""

import argparse
import dataclasses
import functools
import importlib.util
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from deployments.config import READER
from loadtest.servers import NotAnswering, diptych, running, vllm
from loadtest.servers import Server as Started
from serve.client.http_client import Failure, Server
from serve.models import MODELS

NATIVE, BY_FOLDER, FAR, ORIGIN = "toy-llava", "folder-toy", "far-toy", "toy-llava-b"
KINDS = {NATIVE: "in the catalogue", BY_FOLDER: "by its folder", FAR: "on another server", READER: "a package"}
PICTURE = Path(__file__).parent.parent / "serve/toy/scenes/circles.png"
FIELDS: dict[str, dict[str, Any]] = {
    "vqa": {"question": "how many shapes are there?"},
    "ocr": {},
    "detect": {"labels": ["green circle", "blue circle", "red cross"]},
}
HEAD = f"{'column':<11} {'kind':<17} {'answers':<15} {'boxes':<10} others  back  its own error"
"""others: columns beside it that failed when it was killed."""
READY_S, BACK_S = 240.0, 240.0


@dataclasses.dataclass
class Row:
    """A column's outcome. tasks: those that it answered in the fan-outs. boxes: its contract, as the catalogue has it.

    others_failed: replies of other columns that failed after its kill. error: its own reply then. back_s: seconds until
    it answered again; None where it did not within BACK_S.
    """

    kind: str
    tasks: list[str]
    boxes: str | None
    others_failed: list[str]
    error: str | None
    back_s: float | None


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ocr", type=Path, help="a folder in which RapidOCR is installed; else this environment's")


def run(options: argparse.Namespace) -> tuple[str, Any, bool]:
    """Met: each column answers in a merged fan-out, costs no other when it is killed, and comes back.

    The other server is not started again, so its column stays away.
    """
    packages = [] if options.ocr is None else [options.ocr.absolute()]
    reads = bool(packages) or importlib.util.find_spec(READER) is not None
    with tempfile.TemporaryDirectory(prefix="columns-") as folder, running(vllm("A", ORIGIN, verbatim=False)) as far:
        entries: list[dict[str, Any]] = [
            *([{"name": READER}] if reads else []),
            {"name": NATIVE},
            {"folder": str(_padding_toy(Path(folder) / BY_FOLDER)), "boxes": "probe"},
            {"remote": f"{far.url}/v1", "model": ORIGIN, "name": FAR, "max_tokens": 64},
        ]
        kind = diptych("B", "Diptych with columns of every kind", entries)
        kind = dataclasses.replace(kind, model=NATIVE, packages=packages)
        with running(kind) as ours, Server(ours.url) as server:
            rows, merged = _measure(server, ours, far, [str(entry.get("name", BY_FOLDER)) for entry in entries])
    if not reads:
        print(f"{READER} is not installed: without its column (--ocr).")
    met = all(row.tasks and row.error and not row.others_failed for row in rows.values())
    met = met and all(row.back_s is not None for name, row in rows.items() if name != FAR)
    met = met and rows[BY_FOLDER].boxes is not None and all(len(models) > 1 for models in merged.values())
    return "columns", {"columns": {name: dataclasses.asdict(row) for name, row in rows.items()}, "merged": merged}, met


def _measure(
    server: Server, ours: Started, far: Started, names: Sequence[str]
) -> tuple[dict[str, Row], dict[str, list[str]]]:
    """Return each column's row, and the models whose replies each task's merged one was made of. Prints them."""
    if not _wait(lambda: set(server.ready()["models"].values()) == {"ready"}, READY_S):
        raise NotAnswering(f"After {READY_S:g} s not every column is ready: {server.ready()['models']}")
    answers = {task: _ask(server, task) for task in FIELDS}
    merged = {task: list(answer["merged"]["models"]) for task, answer in answers.items() if answer["merged"]}
    for task, models in merged.items():
        print(f"{task}: {json.dumps(answers[task]['merged']['result'])}, merged of {', '.join(models)}", flush=True)
    boxes = {card["id"]: card["contract"] for card in server.get("/v1/catalog")["data"] if card["served"]}
    print(f"\n{HEAD}", flush=True)
    rows: dict[str, Row] = {}
    for name in names:
        able = [task for task, answer in answers.items() if _failures(answer).get(name, "none") == ""]
        rows[name] = row = Row(KINDS[name], able, _short(boxes.get(name)), [], None, None)
        began = time.monotonic()
        for process in far.tree.all() if name == FAR else [ours.tree.process(name)]:
            os.kill(process, signal.SIGKILL)
        failures = _failures(_ask(server, "ocr"))
        row.error = failures.pop(name, "")
        row.others_failed = [f"{other}: {why}" for other, why in failures.items() if why]
        if name != FAR and _wait(functools.partial(_answers, server, name), BACK_S):
            row.back_s = time.monotonic() - began
        back = "-" if row.back_s is None else f"{row.back_s:.0f} s"
        failed, error = len(row.others_failed), row.error or "none"
        print(
            f"{name:<11} {row.kind:<17} {' '.join(able):<15} {row.boxes or '-':<10} {failed:>6} {back:>5}  {error}",
            flush=True,
        )
    return rows, merged


def _ask(server: Server, task: str) -> Any:
    return server.ask(task, PICTURE.read_bytes(), {**FIELDS[task], "deadline_s": 10})


def _failures(answer: Any) -> dict[str, str]:
    """Return each column's error, empty where it answered."""
    return {reply["model"]: (reply["error"] or {}).get("message", "") for reply in answer["replies"]}


def _answers(server: Server, name: str) -> bool:
    return _failures(_ask(server, "ocr")).get(name) == ""


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait until the condition holds; return whether it did in time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if condition():
                return True
        except Failure:  # no model can answer just now
            pass
        time.sleep(0.5)
    return False


def _padding_toy(folder: Path) -> Path:
    """Copy a toy whose processor pads pictures, as it was trained, where transformers' own would crop them."""
    shutil.copytree(MODELS[NATIVE].checkpoint.hub, folder)
    file = folder / "preprocessor_config.json"
    settings = {**json.loads(file.read_text()), "image_processor_type": "LlavaImageProcessor", "do_pad": True}
    file.write_text(json.dumps(settings))
    return folder


def _short(contract: Any) -> str | None:
    if contract is None:
        return None
    return f"{contract['order']}, {'pixels' if contract['scale'] is None else contract['scale']}"
