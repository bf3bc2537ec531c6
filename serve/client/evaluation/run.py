"""`diptych run`: a folder's images through all models, one JSON line per image; and labels for other tools."""

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from serve.client.asking import given, text_fields
from serve.client.evaluation import folder, lines
from serve.client.evaluation.asker import Asker, wait_ready
from serve.client.evaluation.batch import Job, Tally, ask_all
from serve.client.evaluation.export import check_export, export_labels
from serve.client.http_client import Failure, Server

Json = dict[str, Any]
KEY = "file"


def run(options: argparse.Namespace) -> int:
    """Return 0 when every image has its answer, 1 when some lines hold an error. Raises Failure if it stops early.

    Labels of a record that has every image's answer are written without a server.
    """
    fields = request_fields(options)
    here: Path = options.folder
    target = check_export(options)
    names = folder.pictures(here)
    console = Console(stderr=True)
    if target is None or not _answered(options.out, names):
        with Server(options.server, options.api_key) as server:
            wait_ready(server, options.patience_s)
            asker = Asker(server, concurrency=options.concurrency, patience_s=options.patience_s)
    out = lines.open_lines(options.out, KEY, functools.partial(_check_same, options.out, options.task, fields))
    try:
        jobs = [_job(here, name, options.task, fields) for name in names if name not in out.done]
        try:
            tally = ask_all(jobs, asker, out, done=len(names) - len(jobs)) if jobs else Tally()
        except (Failure, KeyboardInterrupt):
            print(_how_to_continue(options.out), file=sys.stderr)
            raise
    finally:
        out.close()
    if target is not None:
        lines_by_name = {line[KEY]: line for line in lines.read_lines(options.out, KEY)}
        export_labels([lines_by_name[name] for name in names], options, target)
    if tally.failed:
        again = " the same call asks about them again" if options.out else " see the lines with an error"
        console.print(f"{tally.failed} of {len(names)} pictures have no answer:{again}.", soft_wrap=True)
    return 1 if tally.failed else 0


def request_fields(options: argparse.Namespace) -> Json:
    """Return the request's fields, the same for every image. Raises Misuse where the task needs more."""

    def usage(field: str, words: str) -> str:
        return f"diptych run {options.folder} --task {options.task} --{field} {words}"

    return given(options) | text_fields(options.task, options.asked, options.labels, usage, options.schema)


def _answered(out: Path, names: Sequence[str]) -> bool:
    """Return whether a record has the answer to every image."""
    if not out.exists():
        return False
    return {line[KEY] for line in lines.read_lines(out, KEY) if "error" not in line}.issuperset(names)


def _job(here: Path, name: str, task: str, fields: Json) -> Job:
    return Job({KEY: name, "task": task, "asked": fields}, task, fields, lambda: folder.content(here / name))


def _check_same(path: Path, task: str, fields: Json, line: Json) -> None:
    for name, was, now in (("task", line["task"], task), ("asked", line.get("asked"), fields)):
        if was != now:
            raise lines.differs(path, name, was, now)


def _how_to_continue(out: Path | None) -> str:
    if out is None:
        return "Stopped. With --out FILE in place of > FILE the same call would go on from here."
    return f"Stopped. What was answered is in {out}: the same call goes on from there."
